"""Plain JSON in place of jsonpickle's text: what a caller without the SDK sends and gets."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tests.control_plane.told_plane import ServedPlane, serving

from multinode import codec, wire
from multinode_control_plane.service import executions

FUNCTION = "/v1/projects/shop/functions/f/invocations"


class Caller:
    def __init__(self, served: ServedPlane) -> None:
        self.served = served
        self.key = served.key("invoke")

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.served.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {self.key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]

    def start(self, **body: Any) -> str:
        status, answer = self.ask("POST", FUNCTION, body)
        assert status == 200, answer
        return answer["invocation_ids"][0]

    def run(self, result: Any, *values: Any) -> str:
        """An invocation that yielded ``values`` and ended with ``result``."""
        plane, invocation_id = self.served.plane, self.start(args=[])

        async def act() -> None:
            assignment, who = await plane.claim(invocation_id)
            report = wire.Report(
                assignment.execution_id,
                values=[wire.Value(n, codec.encode_output(v)) for n, v in enumerate(values, 1)],
                end=wire.ExecutionEnd("succeeded", result=codec.encode_output(result)),
            )
            await plane.store.write(lambda tx: executions.report(tx, plane.context, who, report))

        self.served.do(act())
        return invocation_id


@pytest.fixture(scope="module")
def caller(tmp_path_factory: Any) -> Iterator[Caller]:
    with serving(tmp_path_factory.mktemp("plain")) as served:
        served.do(served.plane.deploy(max_concurrency=100))
        yield Caller(served)


@pytest.mark.parametrize(
    ("body", "args", "kwargs"),
    [
        ({"args": [1, "ü", None, True, 1.5]}, (1, "ü", None, True, 1.5), {}),
        ({"kwargs": {"bound": 3}}, (), {"bound": 3}),
        ({"args": [[1, {"a": []}]], "kwargs": {"x": {"y": 1}}}, ([1, {"a": []}],), {"x": {"y": 1}}),
        ({"args": [], "kwargs": {}}, (), {}),
    ],
)  # fmt: skip
def test_plain_arguments_are_what_the_sdk_would_send(
    caller: Caller, body: Any, args: Any, kwargs: Any
) -> None:
    _, detail = caller.ask("GET", f"/v1/invocations/{caller.start(**body)}/detail?plain=1")
    assert detail["input"] == codec.encode_input(args, kwargs)
    assert detail["plain_input"] == json.loads(json.dumps([args, kwargs]))


def test_a_plain_call_with_an_idempotency_key_is_the_sdks_too(caller: Caller) -> None:
    first = caller.start(args=[1, "a"], idempotency_key="k")
    assert caller.start(inputs=[codec.encode_input((1, "a"), {})], idempotency_key="k") == first


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({}, 422, "invalid_request", "1 to 1000 invocations, not 0"),
        ({"args": [1], "inputs": ["[]"]}, 422, "invalid_request", "either inputs, or args and kwargs"),
        ({"args": {"a": 1}}, 422, "invalid_request", "list was expected"),
        ({"kwargs": [1]}, 422, "invalid_request", "dict was expected"),
        ({"args": [{"py/object": "os.system"}]}, 422, "cannot_encode", "begins with 'py/'"),
        ({"kwargs": {"json://1": 2}}, 422, "cannot_encode", "begins with 'py/'"),
        ({"args": ["x" * 250_000]}, 413, "input_too_long", "the limit is 250,000"),
    ],
)  # fmt: skip
def test_what_plain_json_cannot_say_is_refused(
    caller: Caller, body: Any, status: int, code: str, said: str
) -> None:
    found, error = caller.ask("POST", FUNCTION, body)
    assert (found, error["code"]) == (status, code)
    assert said in error["message"]


def test_results_and_values_are_shown_plain_where_that_is_asked(caller: Caller) -> None:
    invocation_id = caller.run({"a": (1, 2)}, {3}, float("nan"), {1: "one"}, b"ab")
    _, info = caller.ask("GET", f"/v1/invocations/{invocation_id}?plain=1")
    assert info["plain_result"] == {"a": [1, 2]}
    assert info["result"] == codec.encode_output({"a": (1, 2)})
    _, answer = caller.ask("GET", f"/v1/invocations/{invocation_id}/values?plain=1")
    assert answer["plain_values"] == [[3], "NaN", {"1": "one"}, {"py/b64": "YWI="}]
    body = {"invocation_ids": [invocation_id]}
    _, waited = caller.ask("POST", "/v1/invocations/wait?plain=1", body)
    assert waited["ended"][0]["plain_result"] == {"a": [1, 2]}


def test_nothing_is_shown_plain_where_it_is_not_asked(caller: Caller) -> None:
    invocation_id = caller.run([1], 2)
    for path, name in (("", "plain_result"), ("/values", "plain_values"), ("/detail", "plain_input")):  # fmt: skip
        assert caller.ask("GET", f"/v1/invocations/{invocation_id}{path}")[1][name] is None


def test_one_invocation_may_be_waited_for_twice_in_a_request(caller: Caller) -> None:
    pending = caller.start(args=[], delay_s=3600)
    body = {"invocation_ids": [pending, pending], "wait_s": 0}
    assert caller.ask("POST", "/v1/invocations/wait", body) == (200, {"ended": []})
