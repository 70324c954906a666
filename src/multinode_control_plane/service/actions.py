"""What has to happen outside after a commit, as data. The scheduler carries them out on the event loop.

A crash between the commit and the act is covered by the sweep at the next start.
"""

from __future__ import annotations

from dataclasses import dataclass

from multinode_control_plane.runners import WorkerLaunch


@dataclass(frozen=True)
class StartWorker:
    """Make the worker whose intent was committed."""

    launch: WorkerLaunch


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
