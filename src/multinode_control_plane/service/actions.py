"""What has to happen outside after a commit, as data. The scheduler carries them out on the event loop.

A crash between the commit and the act is covered by the sweep at the next start.
"""

from __future__ import annotations

from dataclasses import dataclass

from multinode import wire
from multinode_control_plane.runners import WorkerLaunch


@dataclass(frozen=True)
class StartWorker:
    """Make the worker whose intent was committed."""

    launch: WorkerLaunch


@dataclass(frozen=True)
class HandOver:
    """Tell the worker, which waits for it, what it is to do: its tasks have started with the commit."""

    worker_id: str
    tasks: tuple[wire.Task, ...]


@dataclass(frozen=True)
class StopWorker:
    """End the worker; ``grace_s`` 0 kills it at once."""

    worker_id: str
    grace_s: float = 0.0


@dataclass(frozen=True)
class SetTimer:
    """Tick again at ``at`` (POSIX seconds), at the latest."""

    at: float


@dataclass(frozen=True)
class ForgetWorker:
    """The worker is gone: its token is void, its lease over."""

    worker_id: str


@dataclass(frozen=True)
class RemoveLogs:
    """Remove the output of executions that were deleted."""

    execution_ids: tuple[str, ...]
