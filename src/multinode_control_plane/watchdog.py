"""Sees that whoever asks the database is answered.

A server that takes connections, and even acknowledges what comes, may still say nothing: stopped by a debugger, its disk hanging, a proxy
that holds on to what it gets. No keepalive and no timeout of the server's own ends that. What waits too long has its
connection cut, which its own thread finds lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

log = logging.getLogger(__name__)

HANGS_S = 60.0
"""Longer than anything that is asked takes, waiting for other writers included."""
HURRIED_HANGS_S = 3.0
"""The same, where this process is to end."""
LOOKS = 4
"""How often it is looked within that time."""


class Watchdog:
    """``cut(connection)`` is called, in a thread of its own, for what has waited too long."""

    def __init__(self, cut: Callable[[sa.Connection], None]) -> None:
        self._cut = cut
        self._asked: dict[int, tuple[float, sa.Connection]] = {}
        """Since when (monotonic) each thread waits, and on which connection."""
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._limit_s = HANGS_S
        self._closed = False
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begins to look."""
        self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        self._closed = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    def hurry(self) -> None:
        """This process is to end: from now on nothing may wait long."""
        self._limit_s = HURRIED_HANGS_S
        self._woken.set()

    def begin(self, connection: sa.Connection) -> None:
        """The calling thread asks something on it, until `end`."""
        with self._lock:
            self._asked[threading.get_ident()] = (time.monotonic(), connection)

    def end(self) -> None:
        """It was answered, or failed; or never asked."""
        with self._lock:
            self._asked.pop(threading.get_ident(), None)

    def look(self, now: float) -> None:
        """Cuts what waits for too long at ``now``."""
        with self._lock:  # so that nobody is answered, and asks something else, meanwhile
            for thread, (since, connection) in list(self._asked.items()):
                if now - since > self._limit_s:
                    log.warning("the database has said nothing for %.0f s", now - since)
                    del self._asked[thread]
                    self._cut(connection)

    def _look_on(self) -> None:
        while not self._closed:
            self._woken.wait(self._limit_s / LOOKS)
            self._woken.clear()
            self.look(time.monotonic())
