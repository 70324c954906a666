"""How much one caller may ask for, and how long a connection may take to say what it wants."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tests.control_plane.told_plane import Plane, serving

from multinode.errors import TooManyRequests, TooManyWrongKeys
from multinode_control_plane import patience
from multinode_control_plane.api import limits
from multinode_control_plane.api.calls import Endpoint
from multinode_control_plane.api.limits import WRONG_KEYS, WRONG_KEYS_S, OpenRequests, WrongKeys
from multinode_control_plane.api.routes import make_app
from multinode_control_plane.listening import Serving, bind, known_hosts
from multinode_control_plane.runners import bundles
from multinode_control_plane.telemetry.metrics import PARTS, Metrics


def note_until_refused(wrong: WrongKeys, address: str, now: float) -> TooManyWrongKeys:
    for _ in range(WRONG_KEYS):
        wrong.note(address, now)
    with pytest.raises(TooManyWrongKeys) as caught:
        wrong.note(address, now + 1)
    return caught.value


def test_wrong_keys_are_counted_by_address_and_for_a_minute():
    wrong = WrongKeys()
    assert note_until_refused(wrong, "192.0.2.1", 100.0).retry_after_s == WRONG_KEYS_S - 1
    wrong.note("192.0.2.2", 101.0)
    note_until_refused(wrong, "192.0.2.1", 100.0 + WRONG_KEYS_S)


def test_addresses_are_forgotten_for_others(monkeypatch):
    monkeypatch.setattr(limits, "ADDRESSES", 2)
    wrong = WrongKeys()
    note_until_refused(wrong, "192.0.2.1", 0.0)
    for last in (2, 3, 4):
        wrong.note(f"192.0.2.{last}", 1.0)
    assert len(wrong._counted) == 2
    wrong.note("192.0.2.1", 1.0)


def test_an_open_request_that_is_over_makes_room():
    made = OpenRequests(1)
    made.begin("a", 0.0)
    made.begin("b", 0.0)
    with pytest.raises(TooManyRequests, match="a has 1 open requests"):
        made.begin("a", 0.0)
    made.end("a")
    made.begin("a", 0.0)
    made.end("a")
    made.end("b")
    assert not made._open


def test_the_log_is_told_of_a_busy_caller_once_a_minute(caplog):
    made = OpenRequests(1)
    made.begin("The key 'a'", 0.0)
    for now in (0.0, 1.0, 59.0, 60.0, 61.0):
        with pytest.raises(TooManyRequests):
            made.begin("The key 'a'", now)
    assert caplog.messages == ["The key 'a' has 1 open requests: more are refused"] * 2


def asked_with(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}, "trust_env": False}


def test_wrong_keys_are_told_to_wait_and_a_valid_one_is_answered(tmp_path):
    with serving(tmp_path) as served:
        url, key = served.url + "/v1/projects", served.key("read")
        seen = [httpx.get(url, **asked_with(f"mnk_{n}")) for n in range(WRONG_KEYS + 1)]
        assert {answer.status_code for answer in seen[:-1]} == {401}
        assert seen[-1].status_code == 429
        assert seen[-1].json()["error"]["code"] == "too_many_wrong_keys"
        assert 0 < int(seen[-1].headers["retry-after"]) <= WRONG_KEYS_S
        assert httpx.get(url, **asked_with(key)).status_code == 200
        assert httpx.get(url, trust_env=False).status_code == 401, "no key is no wrong one"


def test_a_key_may_have_so_many_open_requests(tmp_path):
    with serving(tmp_path, max_open_requests=1) as served:
        reader, other = served.key("read"), served.key("read", "other")
        served.do(served.plane.deploy())
        started = served.do(served.plane.start())
        logs = f"{served.url}/v1/invocations/{started}/logs?follow=1"
        with httpx.stream("GET", logs, **asked_with(reader)) as open_one:
            assert open_one.status_code == 200
            refused = httpx.get(served.url + "/v1/projects", **asked_with(reader))
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "The key 'read' has 1 open requests" in refused.text
            assert httpx.get(served.url + "/v1/projects", **asked_with(other)).status_code == 200
        until(lambda: not served.api.open_requests._open)
        assert httpx.get(served.url + "/v1/projects", **asked_with(reader)).status_code == 200


def test_who_has_too_many_open_can_stop_the_server_all_the_same(tmp_path):
    with serving(tmp_path, max_open_requests=1) as served:
        admin = asked_with(served.key("admin"))
        served.do(served.plane.deploy())
        started = served.do(served.plane.start())
        logs = f"{served.url}/v1/invocations/{started}/logs?follow=1"
        with httpx.stream("GET", logs, **admin):
            assert httpx.get(served.url + "/v1/projects", **admin).status_code == 429
            assert httpx.get(served.url + "/v1/server", **admin).status_code == 200
            stop = httpx.post(served.url + "/v1/server/stop", json={"mode": "now"}, **admin)
            assert stop.status_code == 200
        assert served.stops == ["now"]


def test_control_has_a_limit_of_its_own_which_others_do_not_have(tmp_path):
    with serving(tmp_path, max_open_requests=1) as served:
        reader, admin = served.key("read"), served.key("admin")
        served.api.open_requests.begin("The key 'admin', as administrator,", 0.0)
        refused = httpx.get(served.url + "/v1/server", **asked_with(admin))
        assert "The key 'admin', as administrator, has 1 open requests" in refused.text
        served.api.open_requests.begin("The key 'read'", 0.0)
        assert httpx.get(served.url + "/v1/server", **asked_with(reader)).status_code == 429


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.01)


SERVED = inspect.signature(make_app).parameters["endpoints"].default
WITH_BODY = [item for item in SERVED if item.body or (item.archive and item.method == "PUT")]


@pytest.fixture(scope="module")
def small(tmp_path_factory: Any) -> Iterator[Any]:
    """Asks a control plane where a body may have 1,000 bytes, with the token of a worker where that is needed."""
    few = [replace(item, max_body_bytes=1000) for item in SERVED]
    with (
        pytest.MonkeyPatch.context() as patched,
        serving(tmp_path_factory.mktemp("small")) as served,
    ):
        patched.setattr(bundles, "MAX_BUNDLE_BYTES", 1000)
        plane = served.plane
        served.do(plane.deploy())
        token = served.do(claimed_by(plane)).token
        keys = {True: served.key("admin"), False: token}
        app = make_app(served.api, known_hosts(plane.context.settings), few)

        async def ask(item: Endpoint, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
            key = keys[item.role is not None]
            path = re.sub(r"{\w+}", "a" * 64, item.path.replace("{project}", "shop"))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
                headers = {"Authorization": f"Bearer {key}"}
                url = f"http://127.0.0.1{path}"
                return await client.request(item.method, url, content=content, headers=headers)

        yield lambda item, content: served.do(ask(item, content))


async def claimed_by(plane: Plane) -> Any:
    return (await plane.claim(await plane.start()))[0]


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 100):
        yield body[at : at + 100]


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("item", WITH_BODY, ids=lambda item: f"{item.method} {item.path}")
def test_a_body_over_its_endpoints_limit_is_refused(small, item, is_told):
    for size, is_too_large in ((1000, False), (1001, True)):
        body = b'{"x": "' + b"y" * (size - 9) + b'"}'
        answer = small(item, body if is_told else in_chunks(body))
        assert (answer.status_code == 413) == is_too_large, answer.text
    assert "over 1000 bytes" in answer.text or "bundle is over" in answer.text


def test_what_is_told_to_be_too_large_is_not_waited_for(tmp_path):
    with serving(tmp_path) as served:
        host, port = served.url.removeprefix("http://").split(":")
        head = (
            f"POST /v1/server/stop HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2097153\r\n"
            f"Authorization: Bearer {served.key('admin')}\r\n\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(head.encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 413
            assert b"over 2097152 bytes" in answer.read()


def test_some_bodies_may_be_larger(tmp_path):
    with serving(tmp_path) as served:
        start = served.url + "/v1/projects/no/functions/f/invocations"
        large = json.dumps({"inputs": ["x" * 200_000] * 20})
        answer = httpx.post(start, content=large, **asked_with(served.key("admin")))
        assert answer.status_code == 404


# --- slow connections ---


async def told_length(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{size} bytes".encode()})


@asynccontextmanager
async def connected(
    late: list[str],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listener = bind("127.0.0.1", 0)
    served = Serving(told_length, listener, on_late=late.append)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    yield reader, writer
    writer.close()
    await served.end()


def impatient(monkeypatch: pytest.MonkeyPatch, test: Callable[..., Awaitable[None]]) -> list[str]:
    """What did not come in time, as the metrics are told."""
    late: list[str] = []
    monkeypatch.setattr(patience, "HEAD_S", 0.2)
    monkeypatch.setattr(patience, "BODY_S", 0.2)

    async def run() -> None:
        async with connected(late) as (reader, writer):
            await asyncio.wait_for(test(reader, writer), 20)

    asyncio.run(run())
    return late


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", HEAD[:-2], HEAD, HEAD + b"x"])
def test_what_does_not_arrive_has_its_connection_closed(monkeypatch, sent):
    async def test(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""

    assert impatient(monkeypatch, test) == ["body" if sent.startswith(HEAD) else "head"]


def test_a_connection_that_was_closed_for_its_slowness_is_counted():
    made = Metrics()
    made.was_late("body")
    assert [made.late.labels(part)._value.get() for part in PARTS] == [0, 1]


def test_a_head_in_dribs_is_too_late_all_the_same(monkeypatch):
    async def test(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\n")
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            writer.write(b"X-More: 1\r\n")
            await asyncio.wait([gone], timeout=0.02)
        assert gone.exception() is not None or gone.result() == b""

    impatient(monkeypatch, test)


def test_a_body_that_goes_on_coming_has_more_time(monkeypatch):
    monkeypatch.setattr(patience, "BODY_BYTES_PER_S", 100)

    async def test(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for _ in range(10):
            writer.write(b"x" * 100)
            await asyncio.sleep(0.05)  # together longer than BODY_S
        assert b"200 OK" in await reader.readuntil(b"1000 bytes")

    assert impatient(monkeypatch, test) == []


def test_an_idle_connection_between_requests_is_kept(monkeypatch):
    async def test(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"0 bytes")
            await asyncio.sleep(0.3)  # longer than HEAD_S

    impatient(monkeypatch, test)
