"""What the child prints, from its pipes to the log: one JSON object a line, in the order in which it was read.

A log that cannot be written (a full disk, a reader that is gone) costs output, never the worker.
"""

from __future__ import annotations

import codecs
import json
import os
import time

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional

CHUNK_BYTES = 64 * 1024
DEFAULT_LIMIT_BYTES = 64 * 1024 * 1024
END = "end"
"""In place of a stream's name, in the last record of all."""
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_DRAINED_BYTES = 1024 * 1024
"""The most that a pipe holds (Linux: 64 KiB, or what was set, up to 1 MiB)."""


class Log:
    """Appends records ``{"at", "stream", "text"}`` to a file, or to this process's stdout where ``path`` is None.

    There each record of an execution that the worker was not made for has ``execution`` besides, its id: ``execution_id``. After the limit of output (in bytes of UTF-8) one ``system`` record says that it was cut, and the rest is dropped.
    """

    def __init__(self, path: Optional[str], execution_id: str = "") -> None:
        self._path = path
        self._key = {"execution": execution_id} if execution_id and path is None else {}
        self._has_ended = False
        self._fd: Optional[int] = 1 if path is None else None
        self._limit_bytes = self._left_bytes = DEFAULT_LIMIT_BYTES
        self._lost_bytes = 0
        self._is_torn = False
        """Whether the last record could be written in part only: its line has to be ended first."""

    def limit(self, limit_bytes: int) -> None:
        """Says how much output is kept, before any was written."""
        self._limit_bytes = self._left_bytes = limit_bytes

    def write(self, stream: str, text: str) -> None:
        """Appends ``text``, up to the limit, at once."""
        if self._left_bytes < 0 or not text:
            return
        size = len(text.encode("utf-8", "replace"))
        if size <= self._left_bytes:
            self._left_bytes -= size
            self._append([self._record(stream, text)])
            return
        kept = text.encode("utf-8", "replace")[: self._left_bytes].decode("utf-8", "ignore")
        self._left_bytes = -1
        note = f"Output over {self._limit_bytes / 1024 / 1024:g} MiB was cut here."
        self._append([self._record(stream, kept)] if kept else [])
        self._append([self._record("system", note)])

    def note(self, text: str) -> None:
        """Appends a note of our own, whatever the limit."""
        self._append([self._record("system", text)])

    def end(self) -> None:
        """Says that no more will come, to who reads this process's stdout from afar. Once; a file is closed."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._path is None:
            self._append([self._record(END, "")])
        elif self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _record(self, stream: str, text: str) -> bytes:
        """The key last: a record begins with its time, and as no part of one can."""
        record = {"at": _now(), "stream": stream, "text": text, **self._key}
        return json.dumps(record).encode("ascii") + b"\n"

    def _append(self, lines: List[bytes]) -> None:
        """One write a call, so that records of two writers never mix."""
        if self._lost_bytes:
            note = f"{self._lost_bytes} bytes of output were lost: the log could not be written."
            lines = [self._record("system", note), *lines]
        data = b"".join([b"\n", *lines] if self._is_torn else lines)
        written = 0
        try:
            if self._fd is None:
                self._fd = os.open(str(self._path), _APPEND, 0o600)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            self._lost_bytes += len(data) - written
            self._is_torn = self._is_torn or written > 0
            return
        self._lost_bytes, self._is_torn = 0, False


class Stream(Record):
    """One of the child's pipes."""

    name: str
    decoder: codecs.IncrementalDecoder


class Output:
    """The child's stdout and stderr on their way to the log."""

    def __init__(self, stdout: int, stderr: int, log: Log) -> None:
        self._log = log
        decoder = codecs.getincrementaldecoder("utf-8")
        self._streams: Dict[int, Stream] = {
            stdout: Stream("stdout", decoder("replace")),
            stderr: Stream("stderr", decoder("replace")),
        }
        for fd in self._streams:
            os.set_blocking(fd, False)

    @property
    def fds(self) -> List[int]:
        """The pipes that are still open."""
        return list(self._streams)

    def pump(self, fd: int) -> int:
        """Moves what one pipe holds, a chunk at the most, to the log; returns how much. At its end the pipe is closed."""
        stream = self._streams[fd]
        try:
            data = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return 0
        text = stream.decoder.decode(data, final=not data)
        self._log.write(stream.name, text)
        if not data:
            del self._streams[fd]
            os.close(fd)
        return len(data)

    def turn_to(self, log: Log) -> None:
        """What comes from now on goes to ``log``; a character that was cut in the middle is none any more."""
        for stream in self._streams.values():
            self._log.write(stream.name, stream.decoder.decode(b"", final=True))
        self._log = log

    def drain(self) -> None:
        """Moves all that was printed until now; what others go on printing does not hold this up."""
        for fd in self.fds:
            moved = 0
            while fd in self._streams and moved < _DRAINED_BYTES:
                size = self.pump(fd)
                if not size:
                    break
                moved += size


def _now() -> str:
    """The time in UTC as RFC 3339 has it; ``datetime`` costs 2 ms to import."""
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{microseconds:06d}+00:00"
