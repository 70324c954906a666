"""The output of executions in containers: log files that `docker_output` writes, a moment after the worker has.

A worker that serves several invocations goes on after the end of one: nobody may conclude from the worker's end that all is copied. The
supervisor marks the end of each execution's output, and who reads waits for the mark, for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from multinode.wire import LogRecord
from multinode_control_plane.runners.log_files import LogFiles

GLANCE_S = 0.25
"""How long what is read now waits for the mark: of an execution that runs there is none."""
PATIENCE_S = 2.0
"""How long it is waited for after the end of the execution."""
_PAUSE_S = 0.01


class DockerLogs(LogFiles):
    """As `LogFiles`; it is told which executions there are in containers that live, and whose mark has come."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._unmarked: dict[str, str] = {}
        """The worker of each."""

    def begin(self, worker_id: str, execution_id: str) -> None:
        """Output of this execution comes from the worker's container."""
        self._unmarked[execution_id] = worker_id

    def mark(self, execution_id: str) -> None:
        """All of it is in its file. From any thread."""
        self._unmarked.pop(execution_id, None)

    def gone(self, worker_id: str) -> None:
        """Nothing more comes from this worker."""
        for execution_id in [each for each, of in self._unmarked.items() if of == worker_id]:
            self.mark(execution_id)

    async def records(
        self,
        execution_id: str,
        attempt: int,
        *,
        ended: asyncio.Event | None = None,
        tail: int | None = None,
    ) -> AsyncIterator[LogRecord]:
        """See ``LogFiles.records``."""
        copied = None if ended is None else asyncio.Event()
        waiting = asyncio.ensure_future(self._wait(execution_id, ended, copied))
        try:
            if copied is None:
                await waiting
            found = super().records(execution_id, attempt, ended=copied, tail=tail)
            async with aclosing(found):  # type: ignore[type-var]
                async for record in found:
                    yield record
        finally:
            waiting.cancel()

    async def _wait(
        self, execution_id: str, ended: asyncio.Event | None, copied: asyncio.Event | None
    ) -> None:
        if ended is not None:
            await ended.wait()
        until = time.monotonic() + (GLANCE_S if ended is None else PATIENCE_S)
        while execution_id in self._unmarked and time.monotonic() < until:
            await asyncio.sleep(_PAUSE_S)
        if copied is not None:
            copied.set()
