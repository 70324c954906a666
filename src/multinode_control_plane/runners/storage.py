"""What runners and clients leave on disk and in the engine, and when it was last in use: the ground for ``server gc``.

A file's modification time says when it was last in use: it is set when it is written, asked for, or found to be in use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stored:
    """One thing that is stored. ``kind`` is ``environment``, ``image`` (of no environment any more) or ``bundle``."""

    kind: str
    name: str
    size_bytes: int
    used_at: float
    """Unix time."""


def note_use(path: Path) -> None:
    """The file is in use now."""
    with suppress(OSError):
        os.utime(path)


def used_at(path: Path) -> float:
    """When the file was last in use; now where that cannot be seen."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder. Blocks."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def unused(items: Iterable[Stored], names: Iterable[str], *, unused_s: float) -> list[Stored]:
    """Those that are none of ``names`` and have not been in use for so long."""
    kept = set(names)
    before = time.time() - unused_s
    return [item for item in items if item.name not in kept and item.used_at < before]
