"""A wall clock that a test sets forward and back under a running control plane. Its monotonic clock goes on as it does."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

_FORM = struct.Struct("d")


class Clock:
    """``ahead_s``: how far it is ahead of the machine's. A hook of servers' processes, which see each jump at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ahead_s = 0.0
        path.write_bytes(_FORM.pack(0.0))

    def jump(self, seconds: float) -> None:
        """Sets it forward, or back."""
        self.ahead_s += seconds
        with self._path.open("r+b") as file, mmap.mmap(file.fileno(), _FORM.size) as shared:
            _FORM.pack_into(shared, 0, self.ahead_s)

    def install(self) -> None:
        """Has ``time.time`` of this process tell it."""
        with self._path.open("rb") as file:
            shared = mmap.mmap(file.fileno(), _FORM.size, access=mmap.ACCESS_READ)
        tell = time.time
        time.time = lambda: tell() + float(_FORM.unpack_from(shared)[0])
