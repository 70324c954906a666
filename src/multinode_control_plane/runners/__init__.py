"""Runners make workers of one kind; this module holds the contract that all of them keep.

A runner owns processes or containers and nothing of the store. Every method is called on the server's event
loop and must not block it. A runner never decides whether an execution has failed: it only says what it made
and how that ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from multinode.wire import (
    BuildEvent,
    BuildRequest,
    EnvironmentInfo,
    Finding,
    ImageReport,
    LogRecord,
    WorkerSize,
)
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.storage import Discarded, Stored


@dataclass(frozen=True)
class WorkerLaunch:
    """What the control plane wants made. ``worker_id`` goes along as label, so that it is found after a crash.

    ``cpu`` is in virtual CPUs. ``claim_code`` is a secret for the new worker alone. ``fresh_interpreter`` asks for a new
    interpreter with ``interpreter_env`` in its environment, since the function's ``.env`` sets variables
    that an interpreter reads when it starts (``PYTHON*``, ``LD_*``, ``DYLD_*``, ``MALLOC_*``).
    """

    worker_id: str
    claim_code: str
    environment_digest: str
    bundle_digest: str
    execution_id: str
    """Names the log; the worker's id for a describe."""
    cpu: float
    memory_mib: int
    fresh_interpreter: bool = False
    interpreter_env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class WorkerEnd:
    """How a worker ended: no process of it is left. ``detail`` is in words, empty for an ordinary exit."""

    worker_id: str
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    billed_s: float | None = None
    """For how long it is paid, where the runner knows better than from when it was made to when it was gone; 0: not at all."""


class WorkerNotMadeError(Exception):
    """A worker could not be made. Its message is shown as the pending reason; it will be tried again."""


PULLING = "pulling image"
"""The note of a worker whose image is being fetched."""
NO_CAPACITY = "waiting for capacity: "
"""Begins the message of a `WorkerNotMadeError` where what is to run it has no room for it now."""

OnEnd = Callable[[WorkerEnd], None]
OnNote = Callable[[str, str], None]


@dataclass(frozen=True)
class WorkerAddress:
    """Where the server has to listen for workers that cannot reach its own address, and by which name they reach it."""

    listen: str
    name: str


class Runner(Protocol):
    """Makes workers. See the module for what holds for every method."""

    name: str
    """``process``, ``docker`` or ``ecs``."""
    enforces: tuple[str, ...]
    """Which of ``cpu`` and ``memory`` are enforced here; known once it is open."""
    unenforced_reason: str
    """Why not both, in words; empty where both are."""
    tariff: str
    """By which of the prices' tariffs its workers are paid (`prices.TARIFFS`); empty: they cost nothing."""
    on_note: OnNote
    """Called on the loop with a worker's id and what its making waits for, where that takes long; empty: for nothing more."""
    output_expires: bool
    """Whether output is removed where it lies, some time after it was written, by a rule that is not ours."""
    bundles: Bundles
    """The code of versions, as clients put it."""

    async def worker_address(self) -> WorkerAddress | None:
        """Where its workers can reach this machine, if the server's own address will not do. Comes before ``open``.

        Raises InputError where that cannot be known: then the server has to be told (``--worker-url``).
        """

    async def open(self, on_end: OnEnd, worker_url: str) -> None:
        """Makes it ready. ``on_end`` is called on the loop, once for each worker made or adopted, when it is gone."""

    async def learn(self, environments: Iterable[EnvironmentInfo]) -> None:
        """All that the store has: what is here of them may be older or missing, where another process has led meanwhile.

        Comes after ``open``, before anything is started or adopted.
        """

    def size_for(self, cpu: float, memory_mib: int) -> WorkerSize | None:
        """What a worker of a function that asks for this is made with; None where it is just that.

        Raises InvalidRequest where it can make none that has as much.
        """

    def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """Yields the build's output line by line, at last one event with ``environment``, ``image_order`` or ``error``.

        A runner whose environments are images orders what is missing from its client. The others make it: once per digest, under a lock, renamed
        into place; a build that is interrupted or fails leaves nothing. One that exists is answered at once. To a plan the last event
        may be ``missing``, and nothing is made.
        """
        ...

    async def take_image(self, digest: str, report: ImageReport) -> EnvironmentInfo:
        """Checks the image that a client built to an ``image_order``, and keeps it as the environment of this digest.

        Raises InvalidRequest, Conflict or EnvironmentBuildFailed where it is not what was ordered or cannot be had.
        """

    async def start(self, launch: WorkerLaunch) -> None:
        """Makes the worker. Returns when it exists and would be found by ``adopt``.

        Raises WorkerNotMadeError if it could not be made; then it is certain that it does not exist.
        """

    def claimed(self, worker_id: str) -> None:
        """The worker has its execution: what it was given for its start alone may be taken back. Returns at once."""

    def handed(self, worker_id: str, execution_id: str) -> None:
        """The worker has one more execution, whose output is to be found under its own id. Returns at once."""

    async def stop(self, worker_id: str, grace_s: float) -> None:
        """Asks the worker to end (SIGTERM), and kills all of it after ``grace_s``; 0 kills at once. Fargate kills after 120 s whatever it is.

        Returns at once; the end is told through ``on_end``. Unknown or gone workers are no error.
        """

    async def alive(self, worker_id: str) -> bool:
        """Whether any process of the worker may be left: also where that cannot be found out now."""

    async def adopt(self, worker_ids: Iterable[str]) -> dict[str, WorkerEnd]:
        """After a restart: how those of ``worker_ids`` ended that do not live any more, as far as can be seen.

        They do not exist and never will, even where ``start`` had been under way at the crash. For the others ``on_end`` will
        be called. Workers that exist and are not in ``worker_ids`` are killed. Raises InputError where it cannot find out
        which live: then the server does not come up.
        """

    def logs(
        self, execution_id: str, attempt: int, *, ended: asyncio.Event | None = None
    ) -> AsyncIterator[LogRecord]:
        """Records of the execution's output from its beginning, in order.

        Without ``ended``: what there is now. With it: goes on as records are written, within 100 ms of each (``ecs``: as CloudWatch has them), until ``ended``
        is set and everything has been read. An execution without output yet is no error.
        """
        ...

    async def stored(self, in_use: Collection[str]) -> list[Stored]:
        """What is here and is none of ``in_use`` (digests, and ids of executions), whose use is noted."""
        ...

    async def discard(self, item: Stored) -> Discarded:
        """Removes something that is stored, and no worker uses; it stays where one does after all."""
        ...

    async def checks(self, base_image: str) -> list[Finding]:
        """What ``doctor`` should know of what the runner stands on; tried now, and nothing is left of that.

        ``base_image`` is that of the asker's project; empty where nobody said.
        """
        ...

    async def remove_logs(self, execution_ids: Iterable[str]) -> None:
        """Removes the output of these executions; missing ones are no error."""

    async def close(self) -> None:
        """Lets go of everything; workers go on running."""
