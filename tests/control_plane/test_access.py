"""Who may do what: every route with every kind of key and token, and from which hosts."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.control_plane.bench import make_settings
from tests.control_plane.told_plane import Plane, ServedPlane, api_of, on_plane, serving

from multinode import wire
from multinode.errors import InputError
from multinode_cli.commands.local_server import RunningServer, restart_options
from multinode_control_plane.api.border import KnownHosts
from multinode_control_plane.api.field_api.refusals import KNOWN
from multinode_control_plane.api.routes import make_app
from multinode_control_plane.listening import known_hosts
from multinode_control_plane.service import access
from multinode_control_plane.settings import Capacity, parser, resolve

Answer = tuple[int, str]
"""Status and error code; the code of what succeeds is empty. The API of 2023 has texts for codes: see `code_of`."""

DONE: Answer = (200, "")
NO_KEY: Answer = (401, "not_logged_in")
DENIED: Answer = (403, "not_allowed")
NOT_SEEN: Answer = (404, "invocation_not_found")
REFUSED: Answer = (409, "claim_refused")
INVALID: Answer = (422, "invalid_request")
BAD_NAME: Answer = (422, "invalid_name")

ROLES = ("read", "invoke", "deploy", "admin")
WORKERS = ("own", "sibling", "ended", "describing", "foreign")
"""Tokens: of the execution in question; of another one of its project; of one that has ended and whose worker is still
there; of a worker that describes its project; of a worker of another project."""
KEYS = ("own project's key", "another project's key")
"""Keys for one project each, with the highest role that such keys have."""
VOID = ("nothing", "another scheme", "wrong key", "revoked key", "wrong token", "gone worker")


CONTENT_TYPES = ("application/json", "application/x-ndjson", "application/gzip", "text/plain")
"""None of them is a page to a browser."""


@dataclass(frozen=True)
class Rule:
    """A harmless request to a route, and who gets which answer.

    ``role`` is the least that will do (None: no key will) and ``allowed`` what it then gets; ``workers`` says what the
    workers' tokens get that are not denied.
    """

    path: str
    role: str | None
    allowed: Answer = DONE
    body: Any = None
    workers: dict[str, Answer] = field(default_factory=dict)
    keys: tuple[Answer, Answer] | None = None
    """What the `KEYS` get where that is not what `expected` finds."""


def each(answer: Answer, **others: Answer) -> dict[str, Answer]:
    """The same answer for the workers of the project, ``others`` for some."""
    return {**dict.fromkeys(WORKERS, answer), **others}


PROJECT = "/v1/projects/{project}"
INVOCATION = "/v1/invocations/{id}"
BUNDLE = "a" * 64
REGISTER = {"environment_digest": "e", "bundle_digest": "b" * 64, "dotenv": {}, "functions": []}
IN_PROJECT = each(DONE, foreign=NOT_SEEN)

RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/metrics"): Rule("/metrics", "read", keys=(DENIED, DENIED)),
    ("GET", "/v1/server"): Rule("/v1/server", "read", keys=(DONE, DONE)),
    ("POST", "/v1/server/stop"): Rule("/v1/server/stop", "admin", INVALID, {"mode": "nonsense"}),
    ("POST", "/v1/server/rotate-key"): Rule("/v1/server/rotate-key", "admin"),
    ("GET", "/v1/server/checks"): Rule("/v1/server/checks", "deploy", keys=(DONE, DONE)),
    ("POST", "/v1/server/gc"): Rule("/v1/server/gc?dry_run=1", "admin"),
    ("GET", "/v1/audit"): Rule("/v1/audit", "admin"),
    ("GET", "/v1/costs"): Rule("/v1/costs", "read", keys=(DONE, DONE)),
    ("GET", PROJECT + "/functions/{function}/estimate"): Rule(
        "/v1/projects/shop/functions/f/estimate", "read"
    ),
    ("GET", "/v1/keys"): Rule("/v1/keys", "admin"),
    ("POST", "/v1/keys"): Rule("/v1/keys", "admin", BAD_NAME, {"name": "", "role": "read"}),
    ("DELETE", "/v1/keys/{name}"): Rule("/v1/keys/nobody", "admin", (404, "key_not_found")),
    ("GET", "/v1/projects"): Rule("/v1/projects", "read", keys=(DONE, DONE)),
    ("GET", PROJECT): Rule("/v1/projects/shop", "read"),
    ("DELETE", PROJECT): Rule("/v1/projects/nowhere", "deploy", (404, "project_not_found")),
    ("PUT", PROJECT + "/latest"): Rule(
        "/v1/projects/nowhere/latest", "deploy", (404, "project_not_found"), {}
    ),
    ("POST", PROJECT + "/environments"): Rule(
        "/v1/projects/No!/environments", "deploy", BAD_NAME, {"spec": {}}
    ),
    ("PUT", PROJECT + "/environments/{digest}"): Rule(
        "/v1/projects/No!/environments/d",
        "deploy",
        BAD_NAME,
        {
            "spec": {}, "sdk_digest": "", "image": "", "python_served": "", "packages": [],
            "base_image": "", "warnings": [],
        },
    ),
    ("POST", PROJECT + "/describe"): Rule(
        "/v1/projects/No!/describe", "deploy", BAD_NAME, REGISTER
    ),
    ("POST", PROJECT + "/versions"): Rule(
        "/v1/projects/shop/versions", "deploy", (404, "bundle_not_found"), REGISTER
    ),
    ("GET", PROJECT + "/versions/{version}"): Rule(
        "/v1/projects/shop/versions/latest", "read", workers=each(DONE, foreign=DENIED)
    ),
    ("GET", "/v1/bundles/{digest}"): Rule(
        f"/v1/bundles/{BUNDLE}", "deploy", workers=each(DONE, foreign=DENIED),
        keys=(DONE, (404, "bundle_not_found")),
    ),
    ("PUT", "/v1/bundles/{digest}"): Rule(
        "/v1/bundles/no", "deploy", INVALID, {}, keys=(INVALID, INVALID)
    ),
    ("POST", PROJECT + "/functions/{function}/invocations"): Rule(
        "/v1/projects/shop/functions/f/invocations",
        "invoke",
        body={"inputs": ["[[],{}]"], "delay_s": 3600},
        workers=each(DONE, foreign=DENIED),
    ),
    ("GET", "/v1/invocations"): Rule(
        "/v1/invocations?project=shop", "read", workers=each(DONE, foreign=DENIED),
        keys=(DONE, DENIED),
    ),
    ("POST", "/v1/invocations/wait"): Rule(
        "/v1/invocations/wait",
        "read",
        body={"invocation_ids": ["{over}"], "wait_s": 0},
        workers=IN_PROJECT,
    ),
    ("GET", "/v1/executions/{id}"): Rule(
        "/v1/executions/{execution}", "read", keys=(DONE, (404, "execution_not_found"))
    ),
    ("GET", INVOCATION): Rule("/v1/invocations/{own}", "read", workers=IN_PROJECT),
    ("GET", INVOCATION + "/detail"): Rule("/v1/invocations/{own}/detail", "read"),
    ("GET", INVOCATION + "/values"): Rule(
        "/v1/invocations/{own}/values", "read", workers=IN_PROJECT
    ),
    ("GET", INVOCATION + "/logs"): Rule("/v1/invocations/{over}/logs", "read"),
    ("POST", INVOCATION + "/cancel"): Rule(
        "/v1/invocations/{over}/cancel", "invoke", workers=IN_PROJECT
    ),
    ("POST", INVOCATION + "/retry"): Rule("/v1/invocations/{over}/retry", "invoke"),
    ("POST", "/v1/cancel"): Rule("/v1/cancel", "invoke", body={"invocation_ids": ["{over}"]}),
    ("POST", "/v1/worker/claim"): Rule(
        "/v1/worker/claim", None, body={"execution_id": "{execution}"},
        workers=each(REFUSED, own=DONE),
    ),
    ("POST", "/v1/worker/report"): Rule(
        "/v1/worker/report", None, body={"execution_id": "{execution}"},
        workers=each(REFUSED, own=DONE),
    ),
    ("POST", "/v1/worker/next"): Rule(
        "/v1/worker/next", None, body={"number": 2, "wait_s": 0.01},
        workers=each(REFUSED, ended=DONE),
    ),
    ("POST", "/v1/worker/watch"): Rule(
        "/v1/worker/watch", None, body={"execution_id": "{execution}", "wait_s": 0},
        workers=each(REFUSED, own=DONE),
    ),
    ("POST", "/v1/worker/described"): Rule(
        "/v1/worker/described", None, body={"functions": 3}, workers=each(INVALID)
    ),
}  # fmt: skip
PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/v1/openapi.json"),
    ("POST", "/v1/worker/exchange"),
}


F = "/projects/{project}/versions/{version}/functions/{function}"
I = F + "/invocations/{invocation}"  # noqa: E741 - as its endpoints have it
X = I + "/executions/{execution}"
AT_F = "/projects/shop/versions/latest/functions/f"
AT_I = AT_F + "/invocations/{own}"
AT_X = AT_I + "/executions/{execution}"
DEPLOY_NOW: Answer = (400, "")
EXISTS: Answer = (409, "")
IS_OVER: Answer = (409, "")

FIELD_RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/projects"): Rule("/projects", "read", keys=(DONE, DONE)),
    ("GET", "/projects/{project}"): Rule("/projects/shop", "read"),
    ("PUT", "/projects/{project}"): Rule("/projects/shop", "deploy", EXISTS),
    ("DELETE", "/projects/{project}"): Rule(
        "/projects/nowhere", "deploy", (404, "project_not_found")
    ),
    ("GET", "/projects/{project}/versions"): Rule("/projects/shop/versions", "read"),
    ("POST", "/projects/{project}/versions"): Rule("/projects/shop/versions", "deploy", DEPLOY_NOW),
    ("GET", "/projects/{project}/versions/{version}"): Rule(
        "/projects/shop/versions/latest", "read"
    ),
    ("POST", F + "/invocations"): Rule(AT_F + "/invocations", "invoke", body={"input": "[[],{}]"}),
    ("GET", F + "/invocations"): Rule(AT_F + "/invocations", "read"),
    ("GET", I): Rule(AT_I, "read"),
    ("PUT", I + "/cancel"): Rule(AT_F + "/invocations/{gone}/cancel", "invoke", IS_OVER),
    ("GET", X): Rule(AT_X, "read"),
    ("GET", X + "/logs"): Rule(AT_X + "/logs", "read"),
    ("GET", "/container_repository_credentials"): Rule(
        "/container_repository_credentials", "deploy", DEPLOY_NOW, keys=(DEPLOY_NOW, DEPLOY_NOW)
    ),
}
"""Of the API of 2023, which no worker uses."""
FIELD_PUBLIC = {("GET", "/")}


def code_of(status: int, said: Any) -> str:
    """The code of an error; of one of 2023 the code that has its text, or that of any other 403."""
    if "detail" not in said:
        return str(said["error"]["code"])
    known = [code for code, answer in KNOWN.items() if answer == (status, said["detail"])]
    return known[0] if known else DENIED[1] if status == DENIED[0] else ""


class Stage:
    """A served control plane with a project in it, and the ``secrets`` of all who might ask."""

    def __init__(self, served: ServedPlane) -> None:
        self.served = served
        archive = served.plane.context.settings.data_dir / "bundles" / f"{BUNDLE}.tar.gz"
        archive.write_bytes(b"")
        self.secrets: dict[str, str | None] = {role: f"Bearer {served.key(role)}" for role in ROLES}
        self.ids: dict[str, str] = {}
        served.do(self._fill())
        self.secrets |= {
            "nothing": None,
            "another scheme": f"Basic {str(self.secrets['admin']).split()[1]}",
            "wrong key": "Bearer mnk_wrong",
            "wrong token": "Bearer mnw_wrong",
            "revoked key": f"Bearer {self._revoked()}",
            "describing": f"Bearer {self._exchanged()}",
            "own project's key": f"Bearer {served.key('deploy', 'of-shop', 'shop')}",
            "another project's key": f"Bearer {served.key('deploy', 'of-other', 'other')}",
        }

    def _exchanged(self) -> str:
        client = self.served.client("none")
        path = "/v1/worker/exchange"
        token = client.call(wire.Assignment, "POST", path, self._describing).token
        client.close()
        return token

    def _revoked(self) -> str:
        secret = self.served.key("admin", "former")
        client = self.served.client(secret)
        assert client.call(wire.KeyInfo, "DELETE", "/v1/keys/former").revoked_at
        client.close()
        return secret

    async def _fill(self) -> None:
        plane = self.served.plane
        await plane.deploy(code=BUNDLE, max_concurrency=100)
        await plane.deploy("other", code="c" * 64, max_concurrency=100)
        for name in ("own", "sibling", "ended", "gone worker"):
            await self._work(name, "shop")
        await self._work("foreign", "other")
        await plane.end(self._claimed["ended"], "succeeded")
        plane.runner.end(self._claimed["gone worker"][1].worker_id)
        self.ids |= {
            "over": self._claimed["ended"][0].invocation_id or "",
            "gone": self._claimed["gone worker"][0].invocation_id or "",
            "execution": self._claimed["own"][0].execution_id or "",
            "foreign execution": self._claimed["foreign"][0].execution_id or "",
        }
        await self._describe()

        async def is_gone() -> bool:
            return await plane.workers() == 4

        await plane.until(is_gone)

    async def _work(self, name: str, project: str) -> None:
        claimed = await self.served.plane.claim(await self.served.plane.start(project))
        self._claimed = {**getattr(self, "_claimed", {}), name: claimed}
        self.ids[name] = claimed[0].invocation_id or ""
        self.secrets[name] = f"Bearer {claimed[0].token}"

    async def _describe(self) -> None:
        scheduler = self.served.plane.scheduler
        request = wire.DescribeRequest("e" * 64, BUNDLE, {})
        self.describing = asyncio.create_task(scheduler.describe("shop", request))
        while not scheduler.describes:
            await asyncio.sleep(0)
        launch = next(iter(scheduler.describes.values())).launch
        self._describing = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "n")

    async def forget(self) -> None:
        self.describing.cancel()
        await asyncio.wait([self.describing])

    def ask(self, method: str, path: str, secret: str | None, **options: Any) -> Answer:
        """One request, with nothing but what is given."""
        body, headers = options.get("body"), dict(options.get("headers", {}))
        text = None if body is None else json.dumps(body)
        for name, value in self.ids.items():
            path = path.replace("{" + name + "}", value)
            text = text and text.replace("{" + name + "}", value)
        if secret is not None:
            headers["Authorization"] = secret
        connection = http.client.HTTPConnection(self.served.url.removeprefix("http://"), timeout=60)
        try:
            connection.request(method, path, options.get("data", text), headers)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        assert answer.headers["Multinode-Version"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers.get_all("Cache-Control") == ["no-store"]
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers.get_content_type() in CONTENT_TYPES
        if answer.status < 400:
            return answer.status, ""
        told = json.loads(said)
        error = told.get("error", {})
        self.said = f"{error.get('message', '')} {error.get('hint', '')} {told.get('detail', '')}"
        return answer.status, code_of(answer.status, told)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: Any) -> Iterator[Stage]:
    capacity = Capacity(cpu=100.0, memory_mib=100_000)
    with serving(tmp_path_factory.mktemp("stage"), capacity=capacity) as served:
        served.api.wrong_keys.limit = 10**6
        made = Stage(served)
        yield made
        served.do(made.forget())


def expected(rule: Rule, who: str) -> Answer:
    if who in VOID:
        return NO_KEY
    if who in WORKERS:
        return rule.workers.get(who, DENIED)
    if who in KEYS:
        return expected_of_key(rule, KEYS.index(who))
    if rule.role is None or ROLES.index(who) < ROLES.index(rule.role):
        return DENIED
    return rule.allowed


def expected_of_key(rule: Rule, whose: int) -> Answer:
    """A project that is named is denied, whether there is one or not; what an id names is as if it were not there."""
    if rule.role in (None, "admin"):
        return DENIED
    if rule.keys is not None:
        return rule.keys[whose]
    path = rule.path.removeprefix("/v1")
    names_project = path.startswith("/projects/")
    if whose == 0:
        is_own = path.startswith("/projects/shop") or not names_project
        return rule.allowed if is_own else DENIED
    assert names_project or "{o" in f"{rule.path}{rule.body}", "say what the KEYS get"
    return DENIED if names_project else NOT_SEEN


def test_every_route_has_a_rule() -> None:
    served = inspect.signature(make_app).parameters["endpoints"].default
    routes = {(item.method, item.path) for item in served}
    assert routes == RULES.keys() | PUBLIC | FIELD_RULES.keys() | FIELD_PUBLIC


@pytest.mark.parametrize("who", [*ROLES, *WORKERS, *KEYS, *VOID])
@pytest.mark.parametrize("route", RULES, ids=" ".join)
def test_a_route_answers_whom_it_is_for(stage: Stage, route: tuple[str, str], who: str) -> None:
    rule = RULES[route]
    found = stage.ask(route[0], rule.path, stage.secrets[who], body=rule.body)
    assert found == expected(rule, who), stage.said


@pytest.mark.parametrize("who", [*ROLES, *WORKERS, *KEYS, *VOID])
@pytest.mark.parametrize("route", FIELD_RULES, ids=" ".join)
def test_a_route_of_2023_answers_whom_it_is_for(
    stage: Stage, route: tuple[str, str], who: str
) -> None:
    rule = FIELD_RULES[route]
    found = stage.ask(route[0], rule.path, stage.secrets[who], body=rule.body)
    in_words_of_2023 = {NO_KEY: (403, NO_KEY[1])}
    wanted = expected(rule, who)
    assert found == in_words_of_2023.get(wanted, wanted), stage.said


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/{foreign}", None),
        ("PUT", "/{foreign}/cancel", None),
        ("GET", "/{foreign}/executions/{execution}", None),
        ("GET", "/{own}/executions/{foreign execution}", None),
        ("GET", "/{own}/executions/{foreign execution}/logs", None),
        ("POST", "", {"input": "[[],{}]", "parent_invocation": {
            "function_name": "f", "invocation_id": "{foreign}"}}),
    ],
)  # fmt: skip
def test_ids_of_another_project_are_nothing_under_a_path_of_2023(
    stage: Stage, method: str, path: str, body: Any
) -> None:
    for who in ("admin", "own project's key"):
        found = stage.ask(method, f"{AT_F}/invocations{path}", stage.secrets[who], body=body)
        assert found[0] == (400 if method == "POST" else 404), stage.said
    assert stage.served.do(stage.served.plane.info(stage.ids["foreign"])).status == wire.RUNNING


def test_health_is_told_to_anybody_and_a_claim_code_is_needed_for_a_token(stage: Stage) -> None:
    assert stage.ask("GET", "/healthz", None) == DONE
    assert stage.ask("GET", "/readyz", None) == DONE
    guess = {"worker_id": "wrk-1", "claim_code": "guess", "nonce": "n"}
    assert stage.ask("POST", "/v1/worker/exchange", None, body=guess) == REFUSED
    large = {"claim_code": "x" * 70_000}
    assert stage.ask("POST", "/v1/worker/exchange", None, body=large) == (413, "request_too_large")
    assert "over 65536 bytes" in stage.said


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_body_is_utf_8(stage: Stage, encoding: str) -> None:
    body = json.dumps({"worker_id": "wörk", "claim_code": "c", "nonce": "n"}, ensure_ascii=False)
    assert stage.ask("POST", "/v1/worker/exchange", None, data=body.encode(encoding)) == INVALID
    half = b'{"worker_id": "\xed\xa0\x80", "claim_code": "\xed\xa0\x80", "nonce": "n"}'
    assert stage.ask("POST", "/v1/worker/exchange", None, data=half) == INVALID


def test_a_workers_list_shows_its_own_project_alone(stage: Stage) -> None:
    client = stage.served.client(str(stage.secrets["foreign"]).split()[1])
    found = client.call(wire.InvocationList, "GET", "/v1/invocations").invocations
    assert {item.project for item in found} == {"other"}
    client.close()


def test_an_execution_is_not_taken_for_another_with_the_same_token(stage: Stage) -> None:
    body = {"execution_id": "exe-none"}
    assert stage.ask("POST", "/v1/worker/claim", stage.secrets["own"], body=body) == REFUSED


# --- keys for one project ---


@pytest.fixture
def of_shop(stage: Stage) -> Iterator[Any]:
    client = stage.served.client(str(stage.secrets["own project's key"]).split()[1])
    yield client
    client.close()


def test_its_lists_and_counts_are_those_of_its_project(stage: Stage, of_shop: Any) -> None:
    found = of_shop.call(list[wire.ProjectInfo], "GET", "/v1/projects")
    assert [item.project for item in found] == ["shop"]
    listed = of_shop.call(wire.InvocationList, "GET", "/v1/invocations").invocations
    assert {item.project for item in listed} == {"shop"}
    admin = stage.served.client(str(stage.secrets["admin"]).split()[1])
    own, whole = (each.call(wire.ServerInfo, "GET", "/v1/server") for each in (of_shop, admin))
    admin.close()
    assert (own.project, whole.project) == ("shop", None)
    assert (own.workers, own.in_flight) < (whole.workers, whole.in_flight)


def test_a_project_that_is_not_its_own_looks_the_same_whether_it_is_there(stage: Stage) -> None:
    said = []
    for name in ("other", "none"):
        secret = stage.secrets["own project's key"]
        assert stage.ask("GET", f"/v1/projects/{name}", secret) == DENIED
        said.append(stage.said.replace(repr(name), "that"))
    assert said[0] == said[1]
    assert "is for the project 'shop' alone" in said[0]


def test_a_project_of_its_name_that_is_not_there_yet_does_not_tell_of_others(stage: Stage) -> None:
    secret = f"Bearer {stage.served.key('read', 'of-sho', 'sho')}"
    assert stage.ask("GET", "/v1/projects/sho", secret) == (404, "project_not_found")
    assert "shop" not in stage.said


def test_cancelling_many_ends_nothing_of_another_project(stage: Stage) -> None:
    secret, foreign = stage.secrets["own project's key"], stage.ids["foreign"]
    both = {"invocation_ids": [stage.ids["over"], foreign]}
    assert stage.ask("POST", "/v1/cancel", secret, body=both) == NOT_SEEN
    assert stage.ask("POST", "/v1/cancel", secret, body={"project": "other"}) == DENIED
    info = stage.served.do(stage.served.plane.info(foreign))
    assert info.status == wire.RUNNING


def test_what_another_project_runs_cannot_be_the_parent(stage: Stage) -> None:
    path = "/v1/projects/shop/functions/f/invocations"
    body = {"inputs": ["[[],{}]"], "parent_id": stage.ids["foreign"]}
    assert stage.ask("POST", path, stage.secrets["own project's key"], body=body) == NOT_SEEN


def test_a_bundle_is_used_by_those_who_have_sent_all_of_it(stage: Stage) -> None:
    ours, theirs = stage.secrets["own project's key"], stage.secrets["another project's key"]
    content = b"a bundle"
    digest = hashlib.sha256(content).hexdigest()
    path, missing = f"/v1/bundles/{digest}", (404, "bundle_not_found")
    assert stage.ask("PUT", path, ours, data=content) == DONE
    assert stage.ask("GET", path, ours) == DONE
    describe = {"environment_digest": "e" * 64, "bundle_digest": digest, "dotenv": {}}
    for method, at in (("POST", "describe"), ("POST", "versions")):
        asked = {**describe, "functions": []}
        assert stage.ask(method, f"/v1/projects/other/{at}", theirs, body=asked) == missing
    assert stage.ask("PUT", path, theirs, data=b"guessed") == INVALID
    assert stage.ask("GET", path, theirs) == missing
    assert stage.ask("PUT", path, theirs, data=content) == DONE
    assert stage.ask("GET", path, theirs) == DONE


def test_an_environment_that_others_use_is_not_replaced(stage: Stage) -> None:
    report = {
        "spec": {}, "sdk_digest": "", "image": "", "python_served": "", "packages": [],
        "base_image": "", "warnings": [],
    }  # fmt: skip
    path = f"/v1/projects/shop/environments/{'e' * 64}"
    assert stage.ask("PUT", path, stage.secrets["own project's key"], body=report) == DENIED
    assert "Another project uses this environment" in stage.said


@pytest.mark.parametrize(
    ("request_body", "answer"),
    [
        ({"name": "k", "role": "admin", "project": "shop"}, INVALID),
        ({"name": "k", "role": "read", "project": "No!"}, BAD_NAME),
        ({"name": "k", "role": "read", "project": ""}, BAD_NAME),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(stage: Stage, request_body: Any, answer: Any) -> None:
    secret = stage.secrets["admin"]
    assert stage.ask("POST", "/v1/keys", secret, body=request_body) == answer


# --- keys and tokens that go ---


class Held:
    """Holds back what the store's next reading found, until ``go_on`` is set; ``found`` says that it is there."""

    def __init__(self, plane: Plane) -> None:
        self.found, self.go_on = asyncio.Event(), asyncio.Event()
        self._read = plane.store.read
        plane.store.read = self._hold  # type: ignore[method-assign]

    async def _hold(self, job: Any) -> Any:
        answer = await self._read(job)
        if not self.found.is_set():
            self.found.set()
            await self.go_on.wait()
        return answer


def test_the_token_of_a_worker_that_goes_while_it_is_looked_up_is_not_kept(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        assignment, who = await plane.claim(await plane.start())
        app = make_app(api_of(plane), KnownHosts(frozenset({"x"})))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://x",
            headers={"Authorization": f"Bearer {assignment.token}"},
        ) as client:
            held = Held(plane)
            asking = asyncio.create_task(client.get("/v1/invocations"))
            await held.found.wait()
            plane.runner.end(who.worker_id)

            async def is_gone() -> bool:
                return await plane.workers() == 0 and who.worker_id not in plane.scheduler._leases

            await plane.until(is_gone)
            held.go_on.set()
            assert (await asking).status_code == 200  # it was there when it asked
            assert (await client.get("/v1/invocations")).status_code == 401

    on_plane(tmp_path, test)


def test_a_reading_of_the_keys_that_comes_late_revives_none(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        api = api_of(plane)
        request = wire.KeyRequest("ada", "admin")
        made = await plane.store.write(lambda tx: access.create_key(tx, request))
        held = Held(plane)
        first = asyncio.create_task(api.read_keys())
        await held.found.wait()
        await plane.store.write(lambda tx: access.revoke_key(tx, "ada"))
        second = asyncio.create_task(api.read_keys())
        await asyncio.wait([second], timeout=0.2)
        held.go_on.set()
        await asyncio.gather(first, second)
        assert api.keys.find(made.key or "") is None

    on_plane(tmp_path, test)


# --- hosts and web pages ---


def test_a_foreign_host_header_is_refused_on_every_path(stage: Stage) -> None:
    for path in ("/healthz", "/v1/server", "/nothing"):
        found = stage.ask(
            "GET", path, stage.secrets["admin"], headers={"Host": "evil.example:9470"}
        )
        assert found == DENIED
        assert "'evil.example:9470' is not one of this control plane's" in stage.said
        assert "--allowed-hosts" in stage.said


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1"]
)
def test_a_web_page_is_refused_also_with_a_key(stage: Stage, origin: str) -> None:
    headers = {"Origin": origin}
    assert stage.ask("GET", "/v1/server", stage.secrets["admin"], headers=headers) == DENIED
    assert f"A web page of {origin!r} may not use this control plane" in stage.said


def test_what_says_our_own_origin_is_answered(stage: Stage) -> None:
    headers = {"Origin": stage.served.url}
    assert stage.ask("GET", "/v1/server", stage.secrets["admin"], headers=headers) == DONE


LOOPBACK_HOSTS = ("127.0.0.1:9470", "localhost", "LOCALHOST:1", "[::1]:9470")
NEVER = ("", "evil.example", "evil.example:9470", "localhost.evil.example", "127.0.0.1.evil.example",
         "localhost@evil.example", "localhost/evil", "local host", "::1", "[evil]:1", "localhost:x")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "also", "not_these"),
    [
        ({}, (), ("10.0.0.5:9470", "[fd00::1]", "mn.example.com", "box")),
        ({"worker_url": "http://Box:9470/"}, ("box:1",), ("10.0.0.5",)),
        ({"allowed_hosts": ("mn.example.com",)}, ("mn.example.com", "MN.example.com.:443"), ("x.mn.example.com",)),
        ({"host": "0.0.0.0"}, ("0.0.0.0:9470", "10.0.0.5", "[fd00::1]:9470", "box", "box.lan"), ("mn.example.com", "lan")),
        ({"host": "mn.example.com"}, ("mn.example.com:9470", "10.0.0.5"), ("other.example.com",)),
    ],
)  # fmt: skip
def test_the_hosts_that_are_known(
    tmp_path: Path, monkeypatch: Any, settings: Any, also: Any, not_these: Any
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box.lan")
    known = known_hosts(make_settings(tmp_path, **settings))
    assert [host for host in (*LOOPBACK_HOSTS, *also) if host not in known] == []
    assert [host for host in (*NEVER, *not_these) if host in known] == []


def test_the_names_come_from_the_option_or_the_environment() -> None:
    def resolved(*argv: str, **environ: str) -> tuple[str, ...]:
        return resolve(parser().parse_args(argv), environ).allowed_hosts

    names = "mn.example.com, [fd00::1]:9470,"
    assert resolved(MULTINODE_ALLOWED_HOSTS=names) == ("mn.example.com", "fd00::1")
    assert resolved("--allowed-hosts=a,A:80", MULTINODE_ALLOWED_HOSTS=names) == ("a",)
    with pytest.raises(InputError, match=r"'https://mn\.example\.com' is not the name of a host"):
        resolved("--allowed-hosts=https://mn.example.com")


def test_a_restart_keeps_every_setting(tmp_path: Path) -> None:
    made = make_settings(
        tmp_path, allowed_hosts=("a", "b"), port=9, worker_url="http://w:1", allow_process=True, allow_http=True,
        host="0.0.0.0", grace_s=5.0, max_values=7, keep_invocations_s=0.0, trusted_proxies=("10.0.0.0/8", "::1/128"),
    )  # fmt: skip
    options = json.loads(json.dumps(made.options()))  # as they stand in server.json
    server = RunningServer("http://0.0.0.0:9", "key", 1, made.data_dir, options)
    argv = ["--home", str(made.home), *restart_options(server)]
    assert resolve(parser().parse_args(argv), {}) == made
