"""Output of executions as a stream: the last lines, or all of them as they come, over all attempts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from multinode import wire
from multinode_control_plane import decide
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.service import invocations as cases

HEARTBEAT_S = 15.0
Known = list[tuple[str, int, bool]]


async def read_logs(
    plane: ControlPlane,
    known: Known,
    *,
    tail: int | None,
    since_s: float | None,
    attempt: int | None,
) -> AsyncIterator[wire.LogRecord]:
    """What there is now, of the executions in ``known``: the last ``tail`` lines, of the last ``since_s`` seconds."""
    kept: deque[wire.LogRecord] = deque()
    lines = 0
    for execution_id, number, _ in known:
        if attempt not in (None, number):
            continue
        async for record in plane.runner.logs(execution_id, number):
            if not _recent(record, since_s):
                continue
            if tail is None:
                yield record
                continue
            kept.append(record)
            lines += _lines(record)
            while kept and lines - _lines(kept[0]) >= tail:
                lines -= _lines(kept.popleft())
    for position, record in enumerate(kept):
        yield _last_lines(record, lines - (tail or 0)) if position == 0 else record


async def follow_logs(
    plane: ControlPlane,
    invocation_id: str,
    *,
    tail: int | None,
    since_s: float | None,
    attempt: int | None,
) -> AsyncIterator[wire.LogRecord]:
    """The last ``tail`` lines, then what follows, until the invocation is over and all has been read."""
    skip = await _count_before_tail(plane, invocation_id, tail, attempt)
    since = None if since_s is None else time.time() - since_s
    seen: set[str] = set()
    while True:
        with plane.store.changes.subscribe(f"inv:{invocation_id}") as event:
            known, over = await _executions(plane, invocation_id)
            new = [item for item in known if item[0] not in seen and attempt in (None, item[1])]
            if not new and (over or plane.store.changes.stopping):
                return
            if not new:
                await event.wait()
                continue
        for execution_id, number, _ in new:
            seen.add(execution_id)
            async for record in _follow_one(plane, invocation_id, execution_id, number):
                if skip > 0:
                    skip -= 1
                elif since is None or datetime.fromisoformat(record.at).timestamp() >= since:
                    yield record


async def _follow_one(
    plane: ControlPlane, invocation_id: str, execution_id: str, attempt: int
) -> AsyncIterator[wire.LogRecord]:
    """All output of one execution, until its worker is gone."""
    ended = asyncio.Event()

    async def watch() -> None:
        while not ended.is_set():
            with plane.store.changes.subscribe(f"inv:{invocation_id}") as event:
                known, _ = await _executions(plane, invocation_id)
                gone = {item[0] for item in known if item[2]}
                still_there = any(item[0] == execution_id for item in known)
                if execution_id in gone or not still_there or plane.store.changes.stopping:
                    ended.set()
                    return
                await event.wait()

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        async for record in plane.runner.logs(execution_id, attempt, ended=ended):
            yield record
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _executions(plane: ControlPlane, invocation_id: str) -> tuple[Known, bool]:
    def look(connection: Any) -> tuple[Known, bool]:
        info = cases.get(connection, invocation_id, time.time(), None)
        over = decide.is_final(info.status) and info.terminated
        return cases.execution_ids(connection, invocation_id), over

    return await plane.store.read(look)


async def _count_before_tail(
    plane: ControlPlane, invocation_id: str, tail: int | None, attempt: int | None
) -> int:
    """How many records lie before the last ``tail`` lines."""
    if tail is None:
        return 0
    known, _ = await _executions(plane, invocation_id)
    sizes = [
        _lines(record)
        async for record in read_logs(plane, known, tail=None, since_s=None, attempt=attempt)
    ]
    lines = 0
    for position in range(len(sizes) - 1, -1, -1):
        lines += sizes[position]
        if lines > tail:
            return position + 1 if lines - sizes[position] >= tail else position
    return 0


def _recent(record: wire.LogRecord, since_s: float | None) -> bool:
    return since_s is None or datetime.fromisoformat(record.at).timestamp() >= time.time() - since_s


def _lines(record: wire.LogRecord) -> int:
    return record.text.count("\n") or 1


def _last_lines(record: wire.LogRecord, too_many: int) -> wire.LogRecord:
    if too_many <= 0:
        return record
    return record.replace(text="".join(record.text.splitlines(keepends=True)[too_many:]))


async def with_heartbeats(records: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """Each record as a line of JSON; a blank line where nothing came for 15 s, so that proxies keep it open."""
    following = asyncio.ensure_future(anext(records))
    try:
        while True:
            done, _ = await asyncio.wait([following], timeout=HEARTBEAT_S)
            if not done:
                yield b"\n"
                continue
            try:
                record = following.result()
            except StopAsyncIteration:
                return
            yield wire.dumps(record) + b"\n"
            following = asyncio.ensure_future(anext(records))
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await following
        if hasattr(records, "aclose"):
            await records.aclose()
