"""Copies what a worker's container writes to the log file of each execution, while it writes it.

A file is a prefix of what the container writes of its execution at any time, byte for byte and in whole lines: a copy that begins anew,
after a restart of the control plane or of the engine, leaves out as much as is there.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from multinode_control_plane.runners.docker_engine import Engine, EngineError, NotInEngine, Stream

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
# No text in a record can look so: quotes in it are escaped.
_KEY, _MARK = b', "execution": "', b'"stream": "end"'
_KEYED = re.compile(rb', "execution": "(exe-[0-9A-Za-z]+)"}$')


class OutputCopy:
    """The copy of one container's output: a thread of its own, until the container has ended. ``on_end`` is called in it then, ``on_mark`` as
    `copy_output` says."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        path: Path,
        on_end: Callable[[], None],
        on_mark: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._name = name
        self._path = path
        self._on_end = on_end
        self._on_mark = on_mark
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
                copy_output(
                    self._engine,
                    self._name,
                    self._path,
                    follow=True,
                    begun=self._begun,
                    on_mark=self._on_mark,
                )
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
    on_mark: Callable[[str], None] = lambda execution_id: None,
) -> None:
    """Appends to the files what the container has written and they lack. Blocks; raises EngineError and OSError.

    ``on_mark`` is called with each execution all of whose output is there now.
    """
    with closing(_Files(path, on_mark)) as files:
        stream = engine.output(name, follow=follow)
        begun(stream)
        for block in stream:
            files.add(block)


class _Files:
    """``path`` is the file of the execution that the worker was made for; those of its later ones, whose records bear their id, lie beside it."""

    def __init__(self, path: Path, on_mark: Callable[[str], None]) -> None:
        self._path = path
        self._on_mark = on_mark
        self._unfinished = b""
        self._left_out: dict[Path, int] = {}
        """Of each file, how much of what comes is there already."""
        self._open: BinaryIO | None = None
        self._opened = path
        self._turn_to(path)

    def add(self, block: bytes) -> None:
        """Writes the lines that are complete with this block."""
        whole, newline, self._unfinished = (self._unfinished + block).rpartition(b"\n")
        if not newline:
            return
        if _KEY not in whole and _MARK not in whole:
            self._write(self._path, whole + newline)
            return
        for line in whole.split(b"\n"):
            execution_id = _key_of(line) or self._path.stem
            self._write(self._path.with_stem(execution_id), line + newline)
            if _MARK in line:
                self._on_mark(execution_id)

    def close(self) -> None:
        """Closes the file that is open."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _write(self, path: Path, data: bytes) -> None:
        self._turn_to(path)
        left_out = self._left_out[path]
        self._left_out[path] = max(0, left_out - len(data))
        if self._open is not None and left_out < len(data):
            self._open.write(data[left_out:])

    def _turn_to(self, path: Path) -> None:
        if path == self._opened and path in self._left_out:
            return
        self.close()
        self._opened = path
        if path != self._path and path.with_suffix(".removed").exists():
            self._left_out[path] = 0
            return
        self._open = path.open("ab", buffering=0)
        self._left_out.setdefault(path, self._open.tell())


def _key_of(line: bytes) -> str:
    """The execution that a record says it is of; empty where it says none."""
    found = _KEYED.search(line)
    return found[1].decode() if found else ""
