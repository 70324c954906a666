"""Environments as images: what is ordered, what is taken, what is found again and what is removed."""

import asyncio
import base64
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.control_plane.fake_engine import FakeEngine

from multinode.errors import Conflict, EnvironmentBuildFailed, InvalidRequest
from multinode.wire import BuildRequest, EnvironmentSpec, ImageReport, Registry
from multinode_control_plane.runners.docker_images import EnginePlace
from multinode_control_plane.runners.images import Images
from multinode_control_plane.runners.registry import FixedRepository
from multinode_control_plane.runners.storage import Discarded

SDK = "5" * 64
SPEC = EnvironmentSpec(python="3.8", requirements="numpy\n")
IMAGE = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
REGISTRY = Registry("127.0.0.1:5000/multinode", "AWS", "token")
PUSHED = f"{REGISTRY.repository}@sha256:{'c' * 64}"


class Bench:
    def __init__(self, folder, registry=None, installation="here"):
        self.engine = FakeEngine()
        repository = FixedRepository(registry) if isinstance(registry, Registry) else registry
        place = EnginePlace(
            self.engine, do=self.engine.do, installation=installation, repository=repository
        )
        self.images = Images(folder, place=place, installation=installation)
        self.images.open()

    def build(self, spec=SPEC, **options):
        async def main():
            request = BuildRequest(spec, **{"sdk_digest": SDK, **options})
            return [event async for event in self.images.build(request)]

        (event,) = asyncio.run(main())
        return event

    def take(self, digest, image=IMAGE, spec=SPEC):
        report = ImageReport(
            spec, SDK, image, "3.8.20", ["numpy==1.24.4"], "python:3.8@sha256:d", []
        )
        return asyncio.run(self.images.take(digest, report))

    def made(self, image=IMAGE):
        """Order, build, report."""
        order = self.build(no_cache=True).image_order
        self.engine.add(image, order.labels)
        return self.take(order.digest, image)

    def discard(self, item):
        return asyncio.run(self.images.discard(item))

    def stored(self, *in_use):
        return asyncio.run(self.images.stored(in_use))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "images")


def test_a_plan_orders_nothing(bench):
    digest = bench.build().image_order.digest
    planned = bench.build(plan=True)
    assert (planned.missing, planned.image_order) == (digest, None)
    bench.made()
    assert bench.build(plan=True).environment.digest == digest
    assert bench.build(plan=True, no_cache=True).missing == digest


def test_what_is_not_there_is_ordered(bench):
    order = bench.build().image_order
    assert order.tag == f"multinode:{order.digest}"
    assert order.platform == "linux/amd64"
    assert order.labels == {
        "multinode.installation": "here",
        "multinode.environment": order.digest,
    }
    assert order.registry is None


def test_what_was_reported_is_answered_from_then_on(bench):
    made = bench.made()
    assert made.created
    found = bench.build().environment
    assert (found.digest, found.image, found.packages) == (made.digest, IMAGE, ["numpy==1.24.4"])
    assert not found.created
    assert bench.build(no_cache=True).image_order.digest == made.digest


def test_an_image_that_was_removed_from_the_engine_is_ordered_again(bench):
    made = bench.made()
    bench.engine.remove_image(IMAGE)
    assert bench.build().image_order.digest == made.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"python": "3.12"},
        {"requirements": "numpy==1\n"},
        {"files": {"a.txt": "YQ=="}},
        {"apt": ["libgl1"]},
        {"base_image": "python:3.8-slim"},
        {"settings": {"PIP_INDEX_URL": "https://index.example.com/simple"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_is_in_an_image_is_in_its_digest(bench, changes):
    assert bench.build(SPEC.replace(**changes)).image_order.digest != (
        bench.build().image_order.digest
    )


def test_the_sdk_is_in_the_digest_and_credentials_are_not(bench):
    own = bench.build().image_order.digest
    assert bench.build(sdk_digest="6" * 64).image_order.digest != own

    def with_index(url):
        return bench.build(SPEC.replace(settings={"PIP_INDEX_URL": url})).image_order.digest

    assert with_index("https://me:old@i.example.com/") == with_index(
        "https://me:new@i.example.com/"
    )


def test_a_request_that_names_no_sdk_is_refused(bench):
    assert bench.build(sdk_digest="").error.code == "invalid_request"


def test_a_report_for_another_environment_is_refused(bench):
    order = bench.build().image_order
    bench.engine.add(IMAGE, order.labels)
    with pytest.raises(Conflict, match="was built for the environment"):
        bench.take(order.digest, spec=SPEC.replace(requirements="other\n"))


def test_an_image_of_another_engine_is_told_as_such(bench):
    order = bench.build().image_order
    with pytest.raises(EnvironmentBuildFailed, match="built in another one") as caught:
        bench.take(order.digest)
    assert "DOCKER_HOST" in caught.value.hint
    assert bench.build().image_order is not None


def test_an_image_that_was_built_to_another_order_is_refused(bench, tmp_path):
    order = bench.build().image_order
    elsewhere = Bench(tmp_path / "other", installation="there").build().image_order
    bench.engine.add(IMAGE, elsewhere.labels)
    with pytest.raises(InvalidRequest, match="not built to this control plane's order"):
        bench.take(order.digest)


@pytest.mark.parametrize("image", ["", "python:3.8", PUSHED, "sha256:abc", IMAGE + "\n"])
def test_what_is_no_id_of_an_image_is_refused(bench, image):
    with pytest.raises(InvalidRequest, match="is not given by its id"):
        bench.take(bench.build().image_order.digest, image)


def test_a_digest_that_is_none_reaches_no_file(bench):
    with pytest.raises(InvalidRequest):
        bench.images.info("../installation")


def test_with_a_registry_the_image_is_pushed_there_and_pulled_by_digest(tmp_path):
    bench = Bench(tmp_path / "images", REGISTRY)
    order = bench.build().image_order
    assert order.tag == f"{REGISTRY.repository}:here-{order.digest}"
    assert order.registry == REGISTRY
    bench.engine.add(PUSHED, order.labels)
    bench.engine.registry, bench.engine.held = bench.engine.held, {}
    assert bench.take(order.digest, PUSHED).image == PUSHED
    assert bench.engine.pulls == [(PUSHED, "AWS", "token")]
    assert bench.build().environment is not None
    assert len(bench.engine.pulls) == 1, "what is in the engine is not pulled again"


def test_an_image_that_is_not_in_the_registry_is_refused(tmp_path):
    bench = Bench(tmp_path / "images", REGISTRY)
    order = bench.build().image_order
    with pytest.raises(EnvironmentBuildFailed, match="manifest unknown"):
        bench.take(order.digest, PUSHED)
    with pytest.raises(InvalidRequest, match="not pushed to"):
        bench.take(order.digest, f"elsewhere/multinode@{IMAGE}")


def test_a_registry_that_fails_is_told_with_its_words(tmp_path):
    bench = Bench(tmp_path / "images", REGISTRY)
    order = bench.build().image_order
    bench.engine.registry_error = "unauthorized: wrong password"
    with pytest.raises(EnvironmentBuildFailed, match="wrong password"):
        bench.take(order.digest, PUSHED)


class Expiring:
    """A repository whose logins are good until they are refused."""

    def __init__(self):
        self.number = 1

    def login(self, *, is_refused=False):
        self.number += is_refused
        return REGISTRY.replace(key=f"token{self.number}")

    def images(self, installation):
        return []


def test_a_login_that_expired_while_the_server_kept_it_is_made_anew(tmp_path):
    bench = Bench(tmp_path / "images", Expiring())
    order = bench.build().image_order
    assert order.registry.key == "token1"
    assert bench.build(login_refused=True).image_order.registry.key == "token2"
    bench.engine.add(PUSHED, order.labels)
    bench.engine.registry, bench.engine.held = bench.engine.held, {}
    bench.engine.expired_keys = {"token2"}
    assert bench.take(order.digest, PUSHED).image == PUSHED
    assert [key for _, _, key in bench.engine.pulls] == ["token2", "token3"]


def test_what_no_version_uses_is_told_and_can_be_removed(bench):
    made = bench.made()
    assert bench.stored(made.digest) == []
    (item,) = bench.stored()
    assert (item.kind, item.name, item.size_bytes) == ("environment", made.digest, 1000)
    assert bench.discard(item).is_gone
    assert bench.engine.held == {}
    assert bench.build().image_order is not None


def test_an_image_that_was_replaced_is_told_although_its_environment_is_used(bench):
    bench.made(IMAGE)
    made = bench.made(OTHER)
    (item,) = bench.stored(made.digest)
    assert (item.kind, item.name) == ("image", IMAGE)
    assert bench.discard(item).is_gone
    assert list(bench.engine.held) == [OTHER]


def test_an_image_that_a_container_uses_stays(bench):
    bench.made()
    (item,) = bench.stored()
    bench.engine.used = {IMAGE}
    assert not bench.discard(item).is_gone
    assert bench.build().environment is not None


def test_layers_of_builds_that_came_to_no_image_are_told(bench):
    part = {"multinode.part": "environment"}
    bench.engine.add("sha256:layer", part)
    bench.engine.add("sha256:named", part, tags=("mine:latest",))
    bench.engine.add("sha256:other", {**part, "multinode.installation": "there"})
    (item,) = bench.stored()
    assert (item.kind, item.name) == ("layers", "sha256:layer")
    assert bench.discard(item).is_gone
    assert sorted(bench.engine.held) == ["sha256:named", "sha256:other"]


def test_an_image_that_was_just_named_is_in_use_now_however_old_its_layers(bench):
    """One that is being pushed is reported later."""
    order = bench.build().image_order
    bench.engine.add(IMAGE, order.labels, created_at=5.0)
    (item,) = bench.stored()
    assert item.used_at == 5.0


# --- the registry ---------------------------------------------------------------------------------------


def answers(status, *, challenge="", token=""):
    """A handler of a registry that answers DELETE so; with a challenge only to whom has met it."""

    class Handler(BaseHTTPRequestHandler):
        asked = []  # noqa: RUF012

        def do_DELETE(self):
            given = self.headers.get("Authorization", "")
            self.asked.append((self.path, given))
            expected = f"Bearer {token}" if token else BASIC
            refused = challenge and given != expected
            self.reply(401 if refused else status, b"{}")

        def do_GET(self):
            known = self.headers.get("Authorization") == BASIC
            self.asked.append((self.path, known))
            self.reply(200 if known else 401, b'{"token": "%s"}' % token.encode())

        def reply(self, code, body):
            self.send_response(code)
            if code == 401:
                host = self.headers["Host"]
                self.send_header("WWW-Authenticate", challenge.replace("HOST", host))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


BASIC = "Basic " + base64.b64encode(b"AWS:token").decode()


@contextmanager
def registry_that(handler):
    """Its Registry, with a user."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Registry(f"127.0.0.1:{server.server_port}/team/envs", "AWS", "token")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pushed_environment(tmp_path, registry):
    bench = Bench(tmp_path / "images", registry)
    name = f"{registry.repository}@sha256:{'c' * 64}"
    bench.made(name)
    return bench, bench.stored()[0]


BEARER = 'Bearer realm="http://HOST/token",service="r",scope="repository:team/envs:pull"'


@pytest.mark.parametrize(
    ("challenge", "token"), [("", ""), ('Basic realm="x"', ""), (BEARER, "given")]
)
def test_what_no_version_uses_is_removed_from_the_registry_too(tmp_path, challenge, token):
    handler = answers(202, challenge=challenge, token=token)
    with registry_that(handler) as registry:
        bench, item = pushed_environment(tmp_path, registry)
        assert bench.discard(item) == Discarded(is_gone=True)
    assert handler.asked[-1][0] == f"/v2/team/envs/manifests/sha256:{'c' * 64}"
    assert bench.stored() == []
    if token:
        assert "delete" in handler.asked[1][0]


@pytest.mark.parametrize("status", [404, 200])
def test_an_image_that_is_gone_from_the_registry_is_no_error(tmp_path, status):
    with registry_that(answers(status)) as registry:
        bench, item = pushed_environment(tmp_path, registry)
        assert bench.discard(item) == Discarded(is_gone=True)


@pytest.mark.parametrize("status", [405, 403, 400])
def test_a_registry_that_removes_nothing_is_told_and_hinders_nothing(tmp_path, status):
    with registry_that(answers(status)) as registry:
        bench, item = pushed_environment(tmp_path, registry)
        done = bench.discard(item)
    assert done.is_gone
    assert f"keeps it: it does not remove images for us ({status})" in done.note
    assert bench.engine.held == {}
    assert bench.stored() == []


def test_while_the_registry_is_away_the_environment_stays_one(tmp_path):
    with registry_that(answers(503)) as registry:
        bench, item = pushed_environment(tmp_path, registry)
        assert not bench.discard(item).is_gone
    assert not bench.discard(item).is_gone
    (again,) = bench.stored()
    assert again.name == item.name


def test_an_image_that_was_replaced_goes_from_the_registry_too(tmp_path):
    handler = answers(202)
    with registry_that(handler) as registry:
        bench, _ = pushed_environment(tmp_path, registry)
        labels = next(iter(bench.engine.held.values())).labels
        before = f"{registry.repository}@sha256:{'d' * 64}"
        bench.engine.add(OTHER, labels, digests=(before, f"elsewhere/envs@sha256:{'e' * 64}"))
        item = next(item for item in bench.stored() if item.kind == "image")
        assert bench.discard(item) == Discarded(is_gone=True)
    assert [path for path, _ in handler.asked] == [f"/v2/team/envs/manifests/sha256:{'d' * 64}"]
