"""Processes of a worker that nobody guards any more: its supervisor and its starter were both killed.

A starter carries a mark in its environment, which all that comes of it inherits, by fork or by exec. What carries the mark of a dead
starter and does not descend from a supervisor that lives is left over. A process that has emptied its environment is found
by its cgroup only, where there is one.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from multinode.worker import processes

KILL_TIMEOUT_S = 5.0
_STEP_S = 0.005


def is_marked(pid: int, mark: str) -> bool:
    """Whether the process lives and carries this mark. A zombie carries none."""
    sign = f"{processes.STARTER_MARK}={mark}".encode()
    with suppress(OSError):
        return sign in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def kill(mark: str, *, starter_pid: int, guarded: Collection[int]) -> None:
    """Kills what carries the mark, but the starter, and is not below one of ``guarded``. Blocks until nothing of it is left.

    The starter may live: it does the same then. Whether it is about to die cannot be seen.
    Linux only, whose ``/proc`` tells; elsewhere nothing happens.
    """
    if not mark or sys.platform != "linux":
        return
    given_up_at = time.monotonic() + KILL_TIMEOUT_S
    while (left := _find(mark, guarded) - {starter_pid}) and time.monotonic() < given_up_at:
        for pid in left:
            _kill(pid, mark)
        time.sleep(_STEP_S)


def _find(mark: str, guarded: Collection[int]) -> set[int]:
    everyone = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    marked = [pid for pid in everyone if is_marked(pid, mark)]
    return {pid for pid in marked if not _is_below(pid, guarded)}


def _is_below(pid: int, guarded: Collection[int]) -> bool:
    while pid > 1:
        if pid in guarded:
            return True
        pid = processes.parent_of(pid)
    return False


def _kill(pid: int, mark: str) -> None:
    """Kills it if it is still the process that carries the mark, whatever became of its pid, and waits until it is dead."""
    if sys.platform != "linux":
        return
    with suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(pid)
        try:
            if is_marked(pid, mark):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                # A process that dies has no environment for a while before it is dead.
                select.select([descriptor], [], [], KILL_TIMEOUT_S)
        finally:
            os.close(descriptor)
