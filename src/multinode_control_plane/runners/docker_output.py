"""Copies what a worker's container writes to the execution's log file, while it writes it.

The file is a prefix of the container's output at any time, byte for byte: a copy that begins anew, after a restart of the control
plane or of the engine, leaves out as much as is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from multinode_control_plane.runners.docker_engine import Engine, EngineError, NotInEngine, Stream

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class OutputCopy:
    """The copy of one container's output: a thread of its own, until the container has ended. ``on_end`` is called in it then."""

    def __init__(self, engine: Engine, name: str, path: Path, on_end: Callable[[], None]) -> None:
        self._engine = engine
        self._name = name
        self._path = path
        self._on_end = on_end
        self._stream: Stream | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"output {name}", daemon=True)

    def start(self) -> None:
        """Begins to copy."""
        self._thread.start()

    def stop(self) -> None:
        """Copies no further; ``on_end`` is not called. Returns at once."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.close()

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end. Blocks."""
        self._thread.join(timeout_s)

    def _live(self) -> None:
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            try:
                copy_output(self._engine, self._name, self._path, follow=True, begun=self._begun)
                if not self._engine.container(self._name).is_running:
                    break
            except NotInEngine:
                break
            except (EngineError, OSError) as error:  # OSError: the disk is full
                log.warning("%s: its output cannot be copied now: %s", self._name, error)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if not self._stopping.is_set():
            self._on_end()

    def _begun(self, stream: Stream) -> None:
        self._stream = stream
        if self._stopping.is_set():
            stream.close()


def copy_output(
    engine: Engine,
    name: str,
    path: Path,
    *,
    follow: bool = False,
    begun: Callable[[Stream], None] = lambda stream: None,
) -> None:
    """Appends to the file what the container has written and the file lacks. Blocks; raises EngineError and OSError."""
    with path.open("ab", buffering=0) as file:
        left_out = file.tell()
        stream = engine.output(name, follow=follow)
        begun(stream)
        for block in stream:
            if left_out >= len(block):
                left_out -= len(block)
                continue
            file.write(block[left_out:])
            left_out = 0
