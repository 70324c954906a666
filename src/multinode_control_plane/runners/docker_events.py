"""Listens to the engine: which workers' containers have died, and when it is there again after it was away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from multinode_control_plane.runners.docker_containers import WORKER_LABEL
from multinode_control_plane.runners.docker_engine import Engine, EngineError, Stream

log = logging.getLogger(__name__)

_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class Deaths:
    """A thread that holds one request for events open. Both callbacks are called in it.

    ``on_connect`` is called whenever it listens (again): what died before may not be told, so the listener compares.
    """

    def __init__(
        self,
        engine: Engine,
        labels: list[str],
        *,
        on_death: Callable[[str], None],
        on_connect: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._labels = labels
        self._on_death = on_death
        self._on_connect = on_connect
        self._stream: Stream | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="docker events", daemon=True)

    def start(self) -> None:
        """Begins to listen."""
        self._thread.start()

    def interrupt(self) -> None:
        """Breaks the connection, as a restart of the engine does; it is made anew."""
        if self._stream is not None:
            self._stream.close()

    def stop(self) -> None:
        """Listens no longer. Returns at once."""
        self._stopping.set()
        self.interrupt()

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end. Blocks."""
        self._thread.join(timeout_s)

    def _live(self) -> None:
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            try:
                self._stream = stream = self._engine.events(self._labels, ["die"])
                if self._stopping.is_set():
                    stream.close()
                self._on_connect()
                pause_s = _PAUSE_S
                for event in stream:
                    self._on_death(event["Actor"]["Attributes"][WORKER_LABEL])
            except EngineError as error:
                if not self._stopping.is_set():
                    log.warning("%s", error)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
