"""What a supervisor has before it has its launch: its signals, its child, which waits, and its thread."""

from __future__ import annotations

import os
import signal
import sys

from . import processes
from .cgroup import Cgroup
from .child import Child
from .child import start as start_child
from .reports import Mailbox, Reports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Sequence

SWITCH_S = 0.0005
"""How long the thread that sends may have to wait for the loop to let go of the interpreter (Python's default: 5 ms)."""


class Signals:
    """SIGTERM and SIGCHLD, as flags and as a descriptor that becomes readable."""

    def __init__(self) -> None:
        """Installs the handlers; do it first, so that no signal is lost."""
        self.wake_fd, self._bell = os.pipe()
        for fd in (self.wake_fd, self._bell):
            os.set_blocking(fd, False)
        self.is_terminated = False
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def mailbox(self) -> Mailbox:
        """A mailbox that wakes the same descriptor."""
        return Mailbox(self._bell)

    def hush(self) -> None:
        """Empties the descriptor."""
        try:
            while len(os.read(self.wake_fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def _on_term(self, *_: object) -> None:
        self.is_terminated = True


class Prepared:
    """What a supervisor can have before it has its launch: its child, which waits, and its thread."""

    def __init__(self, signals: Signals, cgroups: Optional[Sequence[str]]) -> None:
        """Forks the child; only in a process with one thread."""
        self.signals = signals
        self.child = start_child()
        self.cgroup = _make_cgroup(cgroups, self.child)
        sys.setswitchinterval(SWITCH_S)
        self.mailbox = signals.mailbox()
        self.reports = Reports(self.mailbox)

    def discard(self) -> None:
        """Ends the child of a supervisor that is not needed."""
        processes.kill_group(self.child.pid)
        processes.kill_remaining_children()
        if self.cgroup is not None:
            self.cgroup.remove()


def _make_cgroup(parents: Optional[Sequence[str]], child: Child) -> Optional[Cgroup]:
    """A cgroup with the child in it; None where none is wanted or can be made."""
    if not parents:
        return None
    try:
        return Cgroup.make(parents, child.pid)
    except OSError:  # without limits is better than not at all; it is said in the log
        return None
