"""The API of 2023 over HTTP: its paths, status codes and exact texts, asked as its contract says."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.control_plane import client_of_2023
from tests.control_plane.told_plane import ServedPlane, serving

from multinode_control_plane.api.field_api.endpoints import DEPLOY_NOW, FIELD_ENDPOINTS
from multinode_control_plane.service import deployments
from multinode_control_plane.settings import Capacity

Answer = tuple[int, Any]

NO_PROJECT = (404, "A project with this name does not exist")
NO_VERSION = (404, "A version with this ID does not exist for this project")
NO_FUNCTION = (404, "A function with this name does not exist for this project version")
NO_INVOCATION = (404, "An invocation with this ID does not exist for this function")
NO_EXECUTION = (404, "An execution with this ID does not exist for this invocation")
F = "/projects/shop/versions/latest/functions/f"
INPUT = '[{"py/tuple": [1, 2]}, {"x": 3}]'


class Program:
    """A program of 2023 with a key."""

    def __init__(self, served: ServedPlane, key: str | None) -> None:
        self.served = served
        self.key = key

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Status, and the answer, or the error's detail."""
        if self.key is not None:
            headers.setdefault("Authorization", f"Bearer {self.key}")
        connection = http.client.HTTPConnection(self.served.url.removeprefix("http://"), timeout=60)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
        finally:
            connection.close()
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, said if answer.status == 200 else said["detail"]

    def good(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.ask(method, path, body)
        assert status == 200, answer
        return answer

    def start(self, function: str = F, **body: Any) -> Any:
        return self.good("POST", f"{function}/invocations", {"input": INPUT, **body})

    def get(self, inv: Any) -> Any:
        return self.good("GET", f"{F}/invocations/{inv['invocation_id']}")


@pytest.fixture(scope="module")
def program(tmp_path_factory: Any) -> Iterator[Program]:
    capacity = Capacity(cpu=100.0, memory_mib=100_000)
    with serving(tmp_path_factory.mktemp("field"), capacity=capacity) as served:
        served.do(served.plane.deploy("other", code="c" * 64))
        served.do(served.plane.deploy(max_concurrency=100, max_retries=2))
        yield Program(served, served.key("admin"))


async def is_terminated(program: Program, claimed: Any, invocation_id: str) -> None:
    """Lets the worker go, and waits until that is stored."""
    plane = program.served.plane
    plane.runner.end(claimed[1].worker_id)

    async def is_so() -> bool:
        return (await plane.info(invocation_id)).terminated

    await plane.until(is_so)


# --- projects and versions ---


def test_health_needs_no_key(program: Program) -> None:
    assert Program(program.served, None).ask("GET", "/") == (200, {"status": "healthy"})


def test_projects_are_listed_newest_first(program: Program) -> None:
    found = program.good("GET", "/projects")["projects"]
    assert [item["project_name"] for item in found] == ["shop", "other"]
    assert found[0] == program.good("GET", "/projects/shop")
    assert found[0]["deletion_request_time"] is None
    assert type(found[0]["creation_time"]) is int
    assert program.ask("GET", "//projects")[0] == 200, "a base URL with a slash at its end"


@pytest.mark.parametrize("name", ["latest", "LATEST", "Latest"])
def test_a_version_and_its_functions(program: Program, name: str) -> None:
    (item,) = program.good("GET", "/projects/shop/versions")["versions"]
    version = program.good("GET", f"/projects/shop/versions/{name}")
    assert version == program.good("GET", f"/projects/shop/versions/{item['version_id']}")
    (function,) = version["functions"]
    assert function == {
        "function_name": "f",
        "docker_image": f"multinode:{'e' * 64}",
        "resource_spec": {"virtual_cpus": 0.1, "memory_gbs": 0.25, "max_concurrency": 100},
        "execution_spec": {"max_retries": 2, "timeout_seconds": 3600},
        "function_status": "READY",
        "prepared_function_details": None,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/projects/shop/versions"),
        ("GET", "/container_repository_credentials"),
        ("PUT", "/projects/new"),
    ],
)
def test_images_are_refused_with_the_command_to_use_now(
    program: Program, method: str, path: str
) -> None:
    status, detail = program.ask(method, path)
    assert (status, detail) == (400, DEPLOY_NOW)
    assert "`multinode deploy`" in detail


def test_a_project_that_exists_or_has_too_long_a_name(program: Program) -> None:
    exists = (409, "A project with this name already exists.")
    assert program.ask("PUT", "/projects/shop") == exists
    assert program.ask("PUT", f"/projects/{'x' * 65}") == (400, "The project name is too long")


def test_a_project_is_deleted_once_nothing_runs(program: Program) -> None:
    plane = program.served.plane
    program.served.do(plane.deploy("doomed", code="d" * 64))
    path = "/projects/doomed/versions/latest/functions/f"
    program.served.do(plane.claim(program.start(path)["invocation_id"]))
    deleted = program.good("DELETE", "/projects/doomed")
    assert type(deleted["deletion_request_time"]) is int
    assert program.good("GET", "/projects/doomed") == deleted
    being_deleted = (400, "The project is being deleted")
    assert program.ask("POST", f"{path}/invocations", {"input": INPUT}) == being_deleted
    program.served.do(plane.store.write(lambda tx: deployments.delete(tx, "doomed")))


# --- invocations ---


def test_an_invocations_whole_life(program: Program) -> None:
    plane, do = program.served.plane, program.served.do
    inv = program.start()
    assert (inv["invocation_status"], inv["executions"]) == ("RUNNING", [])
    assert inv["input"] == INPUT
    assert inv["last_update_time"] == inv["creation_time"]
    claimed = do(plane.claim(inv["invocation_id"]))
    running = program.get(inv)
    assert client_of_2023.status(running) == "RUNNING"
    (execution,) = running["executions"]
    assert execution["worker_details"]["type"] == "TEST"
    alone = program.good(
        "GET", f"{F}/invocations/{inv['invocation_id']}/executions/{execution['execution_id']}"
    )
    assert alone["invocation_creation_time"] == inv["creation_time"]
    assert {**alone, **execution} == alone
    do(plane.end(claimed, "succeeded"))
    ended = program.get(inv)
    assert client_of_2023.status(ended) == "SUCCEEDED"
    assert ended["invocation_status"] == "RUNNING", "its worker is not gone"
    do(is_terminated(program, claimed, inv["invocation_id"]))
    assert program.get(inv)["invocation_status"] == "TERMINATED"
    over = (409, "This invocation has already terminated")
    assert program.ask("PUT", f"{F}/invocations/{inv['invocation_id']}/cancel") == over


def test_a_failure_that_is_retried_and_one_that_is_not(program: Program) -> None:
    plane, do = program.served.plane, program.served.do
    inv = program.start()
    do(plane.end(do(plane.claim(inv["invocation_id"])), "failed"))
    waiting = program.get(inv)
    assert client_of_2023.status(waiting) == "PENDING"
    assert client_of_2023.newest(waiting)["error_message"] == "bad bound"
    assert waiting["execution_spec"]["max_retries"] == 2


def test_one_that_waits_is_cancelled_at_once_and_one_that_runs_is_asked(program: Program) -> None:
    plane, do = program.served.plane, program.served.do
    inv = program.start()
    do(plane.claim(inv["invocation_id"]))
    asked = program.good("PUT", f"{F}/invocations/{inv['invocation_id']}/cancel")
    assert client_of_2023.status(asked) == "CANCELLING"
    again = program.good("PUT", f"{F}/invocations/{inv['invocation_id']}/cancel")
    assert again["cancellation_request_time"] == asked["cancellation_request_time"]
    waiting = do(plane.start(delay_s=3600.0))
    gone = program.good("PUT", f"{F}/invocations/{waiting}/cancel")
    assert (client_of_2023.status(gone), gone["invocation_status"]) == ("CANCELLED", "TERMINATED")
    assert gone["executions"] == []


def test_a_parent_is_one_of_the_same_version(program: Program) -> None:
    parent = program.start()
    reference = {"function_name": "f", "invocation_id": parent["invocation_id"]}
    child = program.start(parent_invocation=reference)
    assert child["parent_invocation"]["invocation_id"] == parent["invocation_id"]
    query = urllib.parse.urlencode(
        {"parent_function_name": "f", "parent_invocation_id": parent["invocation_id"]}
    )
    (found,) = program.good("GET", f"{F}/invocations?{query}")["invocations"]
    assert found["parent_invocation"] == reference
    wrong = (400, "The ID of the parent invocation is invalid")
    elsewhere = program.start("/projects/other/versions/latest/functions/f")["invocation_id"]
    for named in (
        {"function_name": "f", "invocation_id": "inv-none"},
        {"function_name": "g", "invocation_id": parent["invocation_id"]},
        {"function_name": "f", "invocation_id": elsewhere},
    ):
        body = {"input": INPUT, "parent_invocation": named}
        assert program.ask("POST", f"{F}/invocations", body) == wrong


def test_pages_follow_one_another_and_new_ones_do_not_shift_them(program: Program) -> None:
    known = [program.start()["invocation_id"] for _ in range(5)][::-1]
    first = program.good("GET", f"{F}/invocations?max_results=2")
    assert [item["invocation_id"] for item in first["invocations"]] == known[:2]
    program.start()
    offset = urllib.parse.quote(first["next_offset"])
    second = program.good("GET", f"{F}/invocations?max_results=2&initial_offset={offset}")
    assert [item["invocation_id"] for item in second["invocations"]] == known[2:4]
    everything, offset = [], ""
    while offset is not None:
        page = program.good("GET", f"{F}/invocations?max_results=3&initial_offset={offset}")
        everything += page["invocations"]
        offset = page["next_offset"]
    ids = [item["invocation_id"] for item in everything]
    assert len(ids) == len(set(ids)) > 5
    for status in ("RUNNING", "TERMINATED"):
        page = program.good("GET", f"{F}/invocations?status={status}")
        assert {item["invocation_status"] for item in page["invocations"]} <= {status}


def test_logs_go_on_where_they_stopped(program: Program) -> None:
    inv = program.start()
    program.served.do(program.served.plane.claim(inv["invocation_id"]))
    (execution,) = program.get(inv)["executions"]
    path = f"{F}/invocations/{inv['invocation_id']}/executions/{execution['execution_id']}/logs"
    first = program.good("GET", path)
    assert first["log_lines"] == ["adding"]
    then = program.good("GET", f"{path}?initial_offset={first['next_offset']}")
    assert (then["log_lines"], then["next_offset"]) == ([], first["next_offset"])
    assert program.good("GET", f"{path}?max_lines=0")["log_lines"] == []


# --- what is wrong ---


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/projects/no", NO_PROJECT),
        ("/projects/a%2Fb", NO_PROJECT),
        ("/projects/a%2fb/versions/latest", NO_PROJECT),
        ("/projects/shop/versions/latest/functions/a%2Fb/invocations", NO_FUNCTION),
        ("/projects/no/versions", NO_PROJECT),
        ("/projects/no/versions/no/functions/no/invocations/no", NO_PROJECT),
        ("/projects/shop/versions/ver-no", NO_VERSION),
        ("/projects/shop/versions/ver-no/functions/no/invocations", NO_VERSION),
        ("/projects/shop/versions/latest/functions/no/invocations", NO_FUNCTION),
        ("/projects/shop/versions/latest/functions/no/invocations/no", NO_FUNCTION),
        (f"{F}/invocations/no", NO_INVOCATION),
        (f"{F}/invocations/no/executions/no", NO_INVOCATION),
        (f"{F}/invocations/no/executions/no/logs", NO_INVOCATION),
        (f"{F}/invocations?initial_offset=x,y", (400, "The next offset is in an invalid format")),
        (f"{F}/invocations?parent_invocation_id=i", (400, "The parent function name is missing")),
        (f"{F}/invocations?parent_function_name=f", (400, "The parent invocation ID is missing")),
        ("/nothing", (404, "Not Found")),
        (f"{F}/invocations/no/executions/no/start", (404, "Not Found")),
    ],
)
def test_the_outermost_missing_thing_is_told_in_the_words_of_2023(
    program: Program, path: str, expected: Answer
) -> None:
    assert program.ask("GET", path) == expected


def test_an_execution_that_does_not_exist(program: Program) -> None:
    inv = program.start()
    path = f"{F}/invocations/{inv['invocation_id']}/executions/exe-no"
    assert program.ask("GET", path) == NO_EXECUTION
    assert program.ask("GET", f"{path}/logs") == NO_EXECUTION


def test_an_invocation_of_another_function_or_version_is_not_found(program: Program) -> None:
    elsewhere = program.start("/projects/other/versions/latest/functions/f")["invocation_id"]
    assert program.ask("GET", f"{F}/invocations/{elsewhere}") == NO_INVOCATION
    assert program.ask("PUT", f"{F}/invocations/{elsewhere}/cancel") == NO_INVOCATION


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{F}/invocations?max_results=-1", None),
        ("GET", f"{F}/invocations?max_results=x", None),
        ("GET", f"{F}/invocations?status=PENDING", None),
        ("GET", "/projects/a%00b", None),
        ("POST", f"{F}/invocations", {}),
        ("POST", f"{F}/invocations", {"input": 3}),
        ("POST", f"{F}/invocations", {"input": "x" * 250_001}),
        ("POST", f"{F}/invocations", {"input": "a\0b"}),
        ("POST", f"{F}/invocations", b'{"input": "\\ud800"}'),
        ("POST", f"{F}/invocations", b"no JSON"),
        ("POST", f"{F}/invocations", {"input": "[]", "parent_invocation": {"function_name": "f"}}),
    ],
)  # fmt: skip
def test_what_does_not_validate_is_a_list_of_faults(
    program: Program, method: str, path: str, body: Any
) -> None:
    status, (fault,) = program.ask(method, path, body)
    assert status == 422
    assert set(fault) == {"loc", "msg", "type"}


ANYTHING = st.text(min_size=1, max_size=20) | st.sampled_from(
    ["latest", "f", "shop", "\0", "9" * 30]
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input", "parent_invocation", "function_name"]), inner),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    endpoint=st.sampled_from([e for e in FIELD_ENDPOINTS if not e.public]),
    names=st.lists(ANYTHING, min_size=5, max_size=5),
    query=st.dictionaries(st.sampled_from(["initial_offset", "max_results", "max_lines", "status", "parent_invocation_id"]), ANYTHING),
    body=JUNK,
)  # fmt: skip
def test_nothing_that_is_asked_is_a_fault_of_the_server(
    program: Program, endpoint: Any, names: Any, query: Any, body: Any
) -> None:
    quoted = [urllib.parse.quote(name.encode("utf-8", "replace"), safe="") for name in names]
    parts = dict(zip(("project", "version", "function", "invocation", "execution"), quoted, strict=True))  # fmt: skip
    if endpoint.method != "DELETE":
        parts["project"] = "shop"
    asked = urllib.parse.urlencode(query, errors="replace")
    path = f"{endpoint.path.format(**parts)}?{asked}"
    status, detail = program.ask(endpoint.method, path, body)
    assert status in (200, 400, 404, 409, 422), (path, detail)


def test_an_input_of_exactly_the_limit_is_taken(program: Program) -> None:
    text = json.dumps([{"py/tuple": ["x" * 250_000]}, {}])
    cut = text.replace("x", "", len(text) - 250_000)
    assert len(program.start(input=cut)["input"]) == 250_000


def test_a_wrong_method_is_told_so(program: Program) -> None:
    assert program.ask("POST", "/projects") == (405, "Method Not Allowed")


# --- who may ---

ROLES = ("read", "invoke", "deploy", "admin")


@pytest.mark.parametrize("endpoint", FIELD_ENDPOINTS, ids=lambda e: f"{e.method} {e.path}")
def test_a_route_answers_whom_it_is_for(program: Program, endpoint: Any) -> None:
    path = endpoint.path.format(
        project="nowhere", version="v", function="f", invocation="i", execution="e"
    )
    body = {"input": INPUT} if endpoint.body else None
    for who in (None, "mnk_wrong", *ROLES):
        key = program.served.key(who, f"{who}-{abs(hash(endpoint))}") if who in ROLES else who
        status, detail = Program(program.served, key).ask(endpoint.method, path, body)
        if endpoint.public:
            assert status == 200
        elif who not in ROLES:
            assert (status, detail) == (403, "The API key is invalid")
        elif ROLES.index(who) < ROLES.index(endpoint.role):
            assert status == 403
            assert "has the role" in detail
        else:
            assert status != 403


def test_a_key_for_one_project_sees_no_other(program: Program) -> None:
    mine = Program(program.served, program.served.key("deploy", "mine", "other"))
    assert [p["project_name"] for p in mine.good("GET", "/projects")["projects"]] == ["other"]
    mine.start("/projects/other/versions/latest/functions/f")
    for path in ("/projects/shop", "/projects/shop/versions", f"{F}/invocations"):
        assert mine.ask("GET", path)[0] == 403
    ours = program.start()["invocation_id"]
    path = f"/projects/other/versions/latest/functions/f/invocations/{ours}"
    assert mine.ask("GET", path) == NO_INVOCATION
    assert mine.ask("PUT", f"{path}/cancel") == NO_INVOCATION


def test_another_scheme_is_403_too(program: Program) -> None:
    basic = {"Authorization": "Basic YTpi"}
    assert program.ask("GET", "/projects", **basic) == (403, "The API key is invalid")


def test_a_workers_token_is_for_workers(program: Program) -> None:
    plane, do = program.served.plane, program.served.do
    token = do(plane.claim(program.start()["invocation_id"]))[0].token
    status, detail = Program(program.served, token).ask("GET", "/projects")
    assert status == 403
    assert "worker's token" in detail
