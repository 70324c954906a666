"""Processes that an invocation has left, which are killed before the next one begins."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Set

PATIENCE_S = 1.0
"""How long a process that was killed may take to be gone."""


class NotRestored(Exception):
    """Something is not as it was, and cannot be made so."""


def kill_children(kept: Set[int]) -> None:
    """Kills and reaps this process's children, and those that their ends turn into its own, but for ``kept``.

    Raises NotRestored where one is still there after ``PATIENCE_S``.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        if not has_children():
            return
        children = processes.children()
        found = [pid for pid in children if pid not in kept]
        if not found and kept.intersection(children):
            return
        if not found:  # they are there, and cannot be listed
            message = "it has left a process running"
            raise NotRestored(message)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in found:
            _reap(pid, until)


def _reap(pid: int, until: float) -> None:
    pause_s = 0.0001
    with suppress(ChildProcessError):  # somebody else has reaped it
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > until:
                message = f"it has left a process that cannot be killed: {pid}"
                raise NotRestored(message)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.01)


def has_children() -> bool:
    """Whether there is any child, a zombie too: one system call."""
    try:
        if hasattr(os, "waitid"):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        else:  # macOS
            os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True
