"""What an invocation may have changed of its process, put back as it was after the import of ``main.py``.

``Surroundings`` is taken then, and restored before the next invocation. What cannot be put back is a reason to replace the worker.
Module globals stay, and so does what no list here names: files elsewhere, open descriptors, limits of the process.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # signal.getsignal makes an enum of each: 0.5 ms for all of them
import os
import signal
import sys
import time
from contextlib import suppress

from . import processes
from .folders import remove_tree
from .strays import NotRestored, has_children, kill_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set

THREAD_PATIENCE_S = 0.1
"""A thread that is about to end is waited for."""

_OF_THE_FIRST = b"TRACEPARENT"
"""The variable of the first invocation alone: later ones have their own, or none."""
_SIGNALS = tuple(
    int(number)
    for number in signal.valid_signals()
    if number not in (signal.SIGKILL, signal.SIGSTOP)
)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Surroundings:
    """The process as it is now. Only for the main thread of the child."""

    def __init__(self, work_dir: str) -> None:
        self._work_dir = work_dir
        self._entries = _entries(work_dir)
        self._env = os.environ
        self._variables = _variables()
        self._variables.pop(_OF_THE_FIRST, None)
        self._handlers = [_signal.getsignal(number) for number in _SIGNALS]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._wakeup_fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(self._wakeup_fd)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._timers = [any(signal.getitimer(which)) for which in _TIMERS]
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._files = _standard_files()
        self._children: Set[int] = set(processes.children() if has_children() else ())
        self._threads = set(_threads())

    def restore(self) -> None:
        """Puts everything back. Raises NotRestored, and whatever the user's leftovers raise."""
        self._restore_signals()
        self._restore_streams()
        self._restore_environment()
        os.umask(self._umask)
        self._kill_children()
        self._check_threads()
        self._restore_folder()

    def _restore_signals(self) -> None:
        for which, was_set in zip(_TIMERS, self._timers):
            if not was_set:
                signal.setitimer(which, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in zip(_SIGNALS, self._handlers):
            # None: not Python's. A module in C has set it at the import, and it cannot be named here.
            if handler is not None and _signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    def _restore_streams(self) -> None:
        sys.stdin, sys.stdout, sys.stderr = self._streams
        if any(stream.closed for stream in self._streams):
            message = "it has closed a standard stream"
            raise NotRestored(message)
        if _standard_files() != self._files:
            message = "it has put something else in place of a standard stream"
            raise NotRestored(message)

    def _restore_environment(self) -> None:
        os.environ = self._env  # noqa: B003 - the same object as before
        variables = _variables()
        if variables == self._variables:
            return
        zone = os.environ.get("TZ")
        for name in variables:
            if name not in self._variables:
                del os.environb[name]
        os.environb.update(self._variables)
        if zone != os.environ.get("TZ"):
            time.tzset()

    def _kill_children(self) -> None:
        kill_children(self._children)
        if self._children and not self._children.issubset(processes.children()):
            message = "a process that main.py had started is gone"
            raise NotRestored(message)

    def _check_threads(self) -> None:
        left = [thread for thread in _threads() if thread not in self._threads]
        until = time.monotonic() + THREAD_PATIENCE_S
        for thread in left:
            with suppress(RuntimeError, AssertionError):  # one that Python did not start
                thread.join(max(0.0, until - time.monotonic()))
        names = sorted(thread.name for thread in left if thread.is_alive())
        if names:
            message = f"it has left {_count(names, 'thread')} running: {', '.join(names)}"
            raise NotRestored(message)

    def _restore_folder(self) -> None:
        os.chdir(self._work_dir)
        missing = dict(self._entries)
        for entry in list(os.scandir(self._work_dir)):
            target = missing.pop(entry.name, None)
            if entry.name in self._entries and _link_target(entry) == target:
                continue
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108
            if os.path.lexists(entry.path):
                message = f"its {entry.name!r} cannot be removed from the working folder"
                raise NotRestored(message)
            if target is not None:
                os.symlink(target, entry.path)  # noqa: PTH211
        for name, target in missing.items():
            if target is None:
                message = f"it has removed {name!r}, which main.py had written"
                raise NotRestored(message)
            os.symlink(target, os.path.join(self._work_dir, name))  # noqa: PTH118, PTH211


def _variables() -> Dict[bytes, bytes]:
    """As ``dict(os.environb)``, which takes 40 µs for 30 of them."""
    found: Dict[bytes, bytes] = os.environ._data.copy()  # type: ignore[attr-defined]
    return found


def _entries(folder: str) -> Dict[str, Optional[str]]:
    return {entry.name: _link_target(entry) for entry in os.scandir(folder)}


def _link_target(entry: os.DirEntry[str]) -> Optional[str]:
    return os.readlink(entry.path) if entry.is_symlink() else None


def _standard_files() -> List[Any]:
    """Which files the descriptors 0, 1 and 2 are."""
    found: List[Any] = []
    for fd in (0, 1, 2):
        try:
            stat = os.fstat(fd)
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_dev, stat.st_ino))
    return found


def _threads() -> List[Any]:
    threading = sys.modules.get("threading")
    return threading.enumerate() if threading is not None else []


def _count(names: List[str], what: str) -> str:
    return f"{len(names)} {what}" if len(names) == 1 else f"{len(names)} {what}s"
