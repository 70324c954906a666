"""What a process passes on to the leader, and what becomes of it when either of the two ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request

from multinode.errors import NotReady, ServerStopping
from multinode_control_plane.api import forwarding
from multinode_control_plane.api.forwarding import Forwarding
from multinode_control_plane.service.leaders import Leader

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StoreOf:
    """Has a leader at ``url``."""

    def __init__(self, url: str) -> None:
        self.leader = Leader("leader", 1, 1, url)

    async def read(self, _job: object) -> Leader:
        return self.leader


def request(path: str = "/v1/worker/watch") -> Request:
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    return Request({**scope, "server": ("127.0.0.1", 1), "scheme": "http"})


def with_leader(act: Act, case: Callable[[Forwarding, asyncio.Event], Awaitable[None]]) -> None:
    """Runs ``case(forwarding, asked)`` with a leader that does ``act`` to each request, whose head it has read."""

    async def main() -> None:
        asked = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await act(reader, writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        made = Forwarding(lambda _: True, StoreOf(f"http://{host}:{port}"), None)
        try:
            await asyncio.wait_for(case(made, asked), 20)
        finally:
            await made.close()
            server.close()

    asyncio.run(main())


async def say_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other has had enough


async def begin_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await say_nothing(reader, writer)


async def break_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await writer.drain()


def test_who_waits_is_sent_elsewhere_when_this_process_stops(monkeypatch):
    monkeypatch.setattr(forwarding, "GRACE_S", 0.1)

    async def case(made: Forwarding, asked: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(made.answer_to(request(), b"{}"))
        await asked.wait()
        made.end()
        with pytest.raises(ServerStopping):
            await waiting

    with_leader(say_nothing, case)


def test_a_stream_ends_when_this_process_stops(monkeypatch):
    monkeypatch.setattr(forwarding, "GRACE_S", 0.1)

    async def case(made: Forwarding, _asked: asyncio.Event) -> None:
        answer = await made.answer_to(request("/v1/invocations/x/logs"), b"")
        parts = answer.body_iterator.__aiter__()
        assert await anext(parts) == b"{}"
        made.end()
        assert [part async for part in parts] == []
        await answer.background()

    with_leader(begin_lines, case)


def test_a_stream_ends_where_the_leader_dies(caplog):
    async def case(made: Forwarding, _asked: asyncio.Event) -> None:
        answer = await made.answer_to(request("/v1/invocations/x/logs"), b"")
        assert [part async for part in answer.body_iterator] == [b"{}"]
        await answer.background()

    with caplog.at_level(logging.WARNING):
        with_leader(break_off, case)
    assert "went away in an answer" in caplog.text
    assert "Traceback" not in caplog.text


def test_what_the_leader_may_have_done_is_not_asked_for_again():
    times: list[float] = []

    async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())

    async def case(made: Forwarding, _asked: asyncio.Event) -> None:
        with pytest.raises(NotReady, match="went away"):
            await made.answer_to(request(), b"{}")

    with_leader(hang_up, case)
    assert len(times) == 1
