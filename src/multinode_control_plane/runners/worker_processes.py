"""Processes that are watched and signalled by identity, and the files by which workers are found again.

A process is held by a pidfd (Linux) or watched through kqueue (macOS), so that its end is noticed at once, without a
thread, and no signal ever reaches another process that was given its pid.

A worker's file is written and locked (flock) by its supervisor: the lock is free when the supervisor is gone, however it
went. This module only reads and removes these files.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from multinode.worker import processes


class WatchedProcess:
    """A living process; ``close`` lets go of it. Belongs to the running event loop."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    @classmethod
    def open(cls, pid: int) -> WatchedProcess | None:
        """The process of this pid, or None if there is none."""
        if sys.platform == "linux":
            with suppress(ProcessLookupError):
                return cls(pid, os.pidfd_open(pid))
            return None
        queue = select.kqueue()
        end = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)
        try:
            queue.control([end], 0)
        except ProcessLookupError:
            queue.close()
            return None
        descriptor = os.dup(queue.fileno())
        queue.close()
        return cls(pid, descriptor)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Calls back on the loop once it has ended, at once if it has ended already."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self._descriptor)
            callback()

        loop.add_reader(self._descriptor, ended)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens where the process has ended."""
        if self._descriptor < 0:
            return
        with suppress(ProcessLookupError):
            if sys.platform == "linux":
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                os.kill(self.pid, number)

    def close(self) -> None:
        """Watches it no longer."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class WorkerFile:
    """What a supervisor says of itself in its file."""

    worker_id: str
    pid: int
    start_time: int
    """When the process started, in clock ticks since boot; 0 where that is unknown."""
    boot_id: str
    starter_pid: int
    starter_mark: str = ""
    """See ``leftovers``."""
    cgroups: tuple[str, ...] = ()
    """The folders of its cgroup."""
    status: int | None = None
    """The raw wait status of a supervisor that failed or was killed; its starter adds it once nothing of the worker is left."""

    @property
    def is_running(self) -> bool:
        """Whether the pid is still that of the process which wrote the file."""
        return (
            self.boot_id == processes.boot_id() and processes.start_of(self.pid) == self.start_time
        )


def read(path: Path) -> WorkerFile | None:
    """What the file says; None where it is missing or not complete."""
    try:
        first, *more = path.read_bytes().splitlines()
        found = json.loads(first)
        return WorkerFile(
            worker_id=str(found["worker_id"]),
            pid=int(found["pid"]),
            start_time=int(found["start_time"]),
            boot_id=str(found["boot_id"]),
            starter_pid=int(found["starter_pid"]),
            starter_mark=str(found.get("starter_mark", "")),
            cgroups=tuple(found.get("cgroups", ())),
            status=int(json.loads(more[0])["status"]) if more else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_held(path: Path) -> bool:
    """Whether the supervisor that locked the file lives."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def is_living(pid: int) -> bool:
    """Whether a process of this pid is there and is no zombie (Linux)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")
