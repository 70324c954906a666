"""Images in a registry: a real one on loopback, and one that refuses in the middle."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.aws.stand_in import StandIn
from tests.images.bench import Follower
from tests.images.conftest import PASSWORD, USER
from tests.images.immutable_registry import immutable

from multinode.errors import RegistryFailed
from multinode.wire import EnvironmentSpec, Registry
from multinode_control_plane.runners.ecr import EcrRepository

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def spec(shared_bench):
    return EnvironmentSpec(base_image=shared_bench.base_image)


def test_an_image_is_pushed_and_named_by_its_digest(shared_bench, registry, spec):
    bench, where = shared_bench, Registry(f"{registry}/team/envs", USER, PASSWORD)
    pushed = bench.make(spec, registry=where)
    assert re.fullmatch(rf"{re.escape(where.repository)}@sha256:[0-9a-f]{{64}}", pushed.image)
    assert bench.follower.steps[-1] == f"Pushing the image to {where.repository}"

    bench.api.remove_image(f"{where.repository}:{'d' * 64}")
    again = bench.make(spec, registry=where)
    assert again == pushed
    assert bench.follower.steps == ["Pulling the image, which the registry has"]
    login = {"username": USER, "password": PASSWORD}
    found = bench.api.inspect_distribution(f"{where.repository}:{'d' * 64}", auth_config=login)
    assert pushed.image.endswith(found["Descriptor"]["digest"])


def test_nothing_is_pushed_twice(shared_bench, registry, spec):
    asked = []
    with immutable(registry, asked=asked) as address:
        where = Registry(f"{address}/team/envs", USER, PASSWORD)
        shared_bench.make(spec, registry=where, digest="c" * 64)
        assert "PUT" in asked
        asked.clear()
        shared_bench.make(spec, registry=where, digest="c" * 64)
    assert set(asked) <= {"GET", "HEAD"}


def test_an_image_that_is_made_anew_gets_along_with_tags_that_stay(shared_bench, registry, spec):
    refusals = []
    with immutable(registry, refusals) as address:
        where = Registry(f"{address}/team/envs", USER, PASSWORD)
        first = shared_bench.make(spec, registry=where, digest="e" * 64)
        second = shared_bench.make(spec, registry=where, digest="e" * 64, no_cache=True)
        third = shared_bench.make(spec, registry=where, digest="e" * 64, no_cache=True)
        assert len({first.image, second.image, third.image}) == 3
        login = {"username": USER, "password": PASSWORD}
        for made in (first, second, third):
            found = shared_bench.api.inspect_distribution(made.image, auth_config=login)
            assert made.image.endswith(found["Descriptor"]["digest"])
        assert refusals == []


def test_a_tag_that_another_deploy_took_meanwhile_is_no_failure(shared_bench, registry, spec):
    refusals = []
    with immutable(registry, refusals) as address:
        where = Registry(f"{address}/team/envs", USER, PASSWORD)
        shared_bench.make(spec, registry=where, digest="f" * 64)

        def nothing_yet(*_):
            return False

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("multinode_cli.images.making._Pushing.is_pushed", nothing_yet)
            made = shared_bench.make(spec, registry=where, digest="f" * 64, no_cache=True)
        assert refusals == ["f" * 64]
        assert made.image.startswith(f"{where.repository}@sha256:")


def test_a_token_of_ecr_that_is_void_when_the_push_begins_is_asked_for_anew(
    shared_bench, spec, tmp_path, monkeypatch
):
    with StandIn(tmp_path) as aws:
        for name, value in aws.environ.items():
            monkeypatch.setenv(name, value)
        clock = iter(range(0, 10**6, 60))
        repository = EcrRepository("envs", makes_it=True, clock=lambda: float(next(clock)))
        follower = Follower(
            lambda step: aws.expire_tokens() if step.startswith("Pushing") else None
        )
        monkeypatch.setattr(
            shared_bench, "another_login", lambda: repository.login(is_refused=True)
        )
        made = shared_bench.make(
            spec, registry=repository.login(), digest="9" * 64, follower=follower
        )
        assert len(aws.calls("GetAuthorizationToken")) == 2
        found = repository.find(made.image)
        assert f"{aws.registry}/envs:{'9' * 64}" in found.names
        assert found.size_bytes > 0
        repository.close()


@pytest.mark.parametrize("key", ["wrong", ""])
def test_wrong_credentials_are_told_before_anything_is_built(shared_bench, registry, spec, key):
    where = Registry(f"{registry}/team/envs", USER if key else "", key)
    with pytest.raises(RegistryFailed, match="does not let us in") as raised:
        shared_bench.make(spec, registry=where)
    assert ("multinode doctor" if key else f"docker login {registry}") in raised.value.hint
    assert shared_bench.follower.told == []


def test_a_registry_that_is_away_is_told_before_anything_is_built(shared_bench, spec):
    with pytest.raises(RegistryFailed, match="cannot be reached from the Docker engine"):
        shared_bench.make(spec, registry=Registry("127.0.0.1:1/envs"))
    assert shared_bench.follower.told == []


@pytest.mark.parametrize("where", ["layer", "manifest"])
def test_a_push_that_is_refused_in_the_middle_is_no_success(shared_bench, spec, where):
    with refusing_registry(where) as (address, asked):
        with pytest.raises(RegistryFailed, match="refused the image for") as raised:
            shared_bench.make(spec, registry=Registry(f"{address}/envs"))
    assert "the quota is used up" in raised.value.hint
    assert where in asked


@contextmanager
def refusing_registry(where):
    """A registry that lets a push begin, takes a layer, and refuses the next one, or takes all layers, and refuses the manifest."""
    asked, sizes, taken = [], {}, {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(200 if self.path == "/v2/" else 404)

        def do_HEAD(self):
            digest = self.path.rpartition("/")[2]
            if digest not in taken:
                self.answer(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(taken[digest]))
            self.send_header("Docker-Content-Digest", digest)
            self.end_headers()

        def do_POST(self):
            asked.append("layer")
            if where == "layer" and asked.count("layer") > 1:
                self.refuse()
            else:
                self.answer(202, Location=f"{urlsplit(self.path).path}{len(asked)}", Range="0-0")

        def do_PATCH(self):
            upload = urlsplit(self.path).path
            sizes[upload] = 0
            while size := int(self.rfile.readline() or b"0", 16):
                self.rfile.read(size + 2)
                sizes[upload] += size
            if not self.rfile.readline():  # the engine gave the push up
                self.close_connection = True
                return
            self.answer(202, Location=self.path, Range=f"0-{sizes[upload] - 1}")

        def do_PUT(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            digest = parse_qs(urlsplit(self.path).query).get("digest")
            if digest:
                taken[digest[0]] = sizes[urlsplit(self.path).path]
                self.answer(201, **{"Docker-Content-Digest": digest[0]})
                return
            asked.append("manifest")
            self.refuse()

        def refuse(self):
            body = b'{"errors": [{"code": "DENIED", "message": "the quota is used up"}]}'
            self.answer(403, body)

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
