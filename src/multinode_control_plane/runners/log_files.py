"""The output of executions, as the supervisors of the ``process`` runner write it: ``logs/<execution id>.jsonl``.

One record a line, ``{"at", "stream", "text"}``, appended by the supervisor alone. This module reads and removes; it
never writes a record. A last line without its newline is still being written, and is not there yet. In the place of output that
was removed for want of room is ``<execution id>.removed``, which is empty.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from multinode.wire import LogRecord
from multinode.worker.output import END
from multinode_control_plane.runners.file_changes import FileChanges
from multinode_control_plane.runners.storage import OUTPUT, Stored, used_at

BLOCK_BYTES = 256 * 1024
"""Read and parsed at once, in a thread; what is shorter than a tenth of it is read on the loop, which is quicker."""


class LogFiles:
    """The logs below ``folder``. Belongs to one event loop; ``close`` ends all who follow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changes = FileChanges()

    def open(self) -> None:
        """Makes the folder. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, execution_id: str) -> Path:
        """Where the output of an execution lies, or will."""
        return self._folder / f"{execution_id}.jsonl"

    async def records(
        self,
        execution_id: str,
        attempt: int,
        *,
        ended: asyncio.Event | None = None,
        tail: int | None = None,
    ) -> AsyncIterator[LogRecord]:
        """Records in the order in which they were written; from the beginning, or with ``tail`` so many text lines before
        the end at the most.

        Without ``ended``: what there is now. With it: goes on as records are written until ``ended`` is set
        and everything has been read. An execution without output is no error.
        """
        path = self.path(execution_id)
        removed = self._removed(execution_id)
        if removed.exists():
            yield _removal(removed, attempt)
            return
        if ended is None or ended.is_set():
            if path.exists():
                with path.open("rb") as file:
                    async for record in _tail(_rest(file, attempt), tail):
                        yield record
            return
        path.touch()  # there has to be a file to watch; its supervisor appends to it
        with path.open("rb") as file, self._changes.of(path) as changed:
            async for record in _tail(_rest(file, attempt), tail):
                yield record
            following = _follow(file, attempt, changed=changed, ended=ended)
            async with aclosing(following):
                async for record in following:
                    yield record

    async def remove(self, execution_ids: Iterable[str]) -> None:
        """Removes the output of these executions; missing ones are no error."""
        paths = [
            path
            for execution_id in execution_ids
            for path in (self.path(execution_id), self._removed(execution_id))
        ]
        await asyncio.to_thread(_unlink, paths)

    def stored(self, in_use: Collection[str]) -> list[Stored]:
        """The output of all executions that are none of ``in_use``, as much as it takes on the disk. Blocks."""
        found = []
        for path in self._folder.glob("*.jsonl"):
            if path.stem in in_use:
                continue
            with suppress(OSError):  # its project was removed meanwhile
                state = path.stat()
                size_bytes = state.st_blocks * 512
                found.append(Stored(OUTPUT, path.stem, size_bytes, state.st_mtime))
        return [item for item in found if item.size_bytes]

    def discard(self, execution_id: str) -> None:
        """Removes output so that who reads it is told. Blocks."""
        self.path(execution_id).unlink(missing_ok=True)  # first: the disk may be full
        self._removed(execution_id).touch(mode=0o600)

    def _removed(self, execution_id: str) -> Path:
        return self._folder / f"{execution_id}.removed"

    def close(self) -> None:
        """Lets go of everything that was watched."""
        self._changes.close()


def _removal(mark: Path, attempt: int) -> LogRecord:
    at = datetime.fromtimestamp(used_at(mark), timezone.utc).isoformat()
    text = "The output of this attempt was removed to make room (MULTINODE_DISK_LIMIT).\n"
    return LogRecord(at, "system", text, attempt)


def last_lines(records: Sequence[LogRecord], lines: int) -> list[LogRecord]:
    """The end of ``records`` with at most so many lines of text: the first of them may be cut at its beginning."""
    kept: deque[LogRecord] = deque()
    left = lines
    for record in reversed(records):
        if left <= 0:
            break
        pieces = record.text.splitlines(keepends=True)
        kept.appendleft(
            LogRecord(record.at, record.stream, "".join(pieces[-left:]), record.attempt)
        )
        left -= len(pieces)
    return list(kept)


async def _follow(
    file: BinaryIO, attempt: int, *, changed: asyncio.Event, ended: asyncio.Event
) -> AsyncGenerator[LogRecord, None]:
    end = asyncio.ensure_future(ended.wait())
    try:
        while True:
            is_last = ended.is_set()  # before reading: what was written before the end must be seen
            changed.clear()
            async for record in _rest(file, attempt):
                yield record
            if is_last:
                return
            change = asyncio.ensure_future(changed.wait())
            try:
                await asyncio.wait((end, change), return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
    finally:
        end.cancel()


async def _rest(file: BinaryIO, attempt: int) -> AsyncIterator[LogRecord]:
    """What is complete from the file's position on; the position then stands behind it."""
    while True:
        left = os.fstat(file.fileno()).st_size - file.tell()
        if left <= 0:
            return
        if left > BLOCK_BYTES // 10:
            records = await asyncio.to_thread(_block, file, attempt)
        else:
            records = _block(file, attempt)
        if records is None:
            return
        for record in records:
            yield record


def _block(file: BinaryIO, attempt: int) -> list[LogRecord] | None:
    """The records of the next block, up to its last newline; None where no line is complete."""
    start = file.tell()
    data = file.read(BLOCK_BYTES)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == BLOCK_BYTES:  # one line longer than a block
        data += file.readline()
        end = len(data) if data.endswith(b"\n") else 0
    file.seek(start + end)
    if end == 0:
        return None
    lines = data[:end].splitlines()
    return [record for record in (_parse(line, attempt) for line in lines) if record is not None]


def _parse(line: bytes, attempt: int) -> LogRecord | None:
    """A record; None for what a supervisor that was killed, or a full disk, left of one, and for the mark of the end."""
    try:
        fields = json.loads(line)
        if fields["stream"] == END:
            return None
        return LogRecord(fields["at"], fields["stream"], fields["text"], attempt)
    except (ValueError, KeyError, TypeError):
        return None


async def _tail(records: AsyncIterator[LogRecord], lines: int | None) -> AsyncIterator[LogRecord]:
    """The last ``lines`` lines of ``records``, never holding many more than those; all of it where that is None."""
    if lines is None:
        async for record in records:
            yield record
        return
    kept: list[LogRecord] = []
    async for record in records:
        kept.append(record)
        if len(kept) >= 2 * lines + 100:
            kept = last_lines(kept, lines)
    for record in last_lines(kept, lines):
        yield record


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
