"""Tells when a file has been written to: from the kernel, without polling and without a thread (Linux).

One inotify descriptor, read by the event loop, serves all who wait. watchfiles, which the other systems get, sleeps in
steps of its own in a thread for each wait: on Linux that would be a thread and a hundred wake-ups a second.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# inotify(7)
_IN_MODIFY, _IN_DELETE_SELF, _IN_IGNORED = 0x2, 0x400, 0x8000
_EVENT = struct.Struct("iIII")
_STEP_MS = 20
"""How often watchfiles looks for changes, where there is no inotify."""


class FileChanges:
    """Watches single files. Belongs to the event loop in which it is first used; ``close`` frees everything."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._libc: ctypes.CDLL | None = None
        self._watchers: defaultdict[int, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def of(self, path: Path) -> Iterator[asyncio.Event]:
        """An event that is set whenever the file at ``path``, which must exist, was written to or removed.

        The one who waits clears it, before reading the file.
        """
        changed = asyncio.Event()
        if sys.platform != "linux":
            task = asyncio.create_task(_watch_by_steps(path, changed))
            try:
                yield changed
            finally:
                task.cancel()
            return
        watch = self._add(path)
        self._watchers[watch].add(changed)
        try:
            yield changed
        finally:
            self._remove(watch, changed)

    def close(self) -> None:
        """Wakes all who wait, and lets go of the descriptor."""
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()
        self._watchers.clear()
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, path: Path) -> int:
        # The same file gives the same number again: one watch for all who follow it.
        watch = self._open().inotify_add_watch(
            self._descriptor, os.fsencode(path), _IN_MODIFY | _IN_DELETE_SELF
        )
        if watch < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        return int(watch)

    def _open(self) -> ctypes.CDLL:
        if self._libc is None:
            self._libc = ctypes.CDLL(None, use_errno=True)
        if self._descriptor < 0:
            self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._descriptor < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return self._libc

    def _remove(self, watch: int, changed: asyncio.Event) -> None:
        watchers = self._watchers.get(watch, set())
        watchers.discard(changed)
        if not watchers and self._watchers.pop(watch, None) is not None:
            self._open().inotify_rm_watch(self._descriptor, watch)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, 64 * 1024)
            position = 0
            while position < len(data):
                watch, mask, _, name_bytes = _EVENT.unpack_from(data, position)
                position += _EVENT.size + name_bytes
                for changed in self._watchers.get(watch, ()):
                    changed.set()
                if mask & _IN_IGNORED:  # the file is gone, and the watch with it
                    self._watchers.pop(watch, None)


async def _watch_by_steps(path: Path, changed: asyncio.Event) -> None:
    from watchfiles import awatch  # not at the top: not needed on Linux

    async for _ in awatch(path, debounce=_STEP_MS, step=_STEP_MS, recursive=False):
        changed.set()
