"""What runners and clients leave on disk and in the engine, when it was last in use, and what of it goes: the ground for ``server gc``.

A file's modification time says when it was last in use: it is set when it is written, asked for, or found to be in use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEPLOY_S = 600.0
"""A deploy has its environment and its bundle before it has a version that uses them."""
OUTPUT = "output"
_SPANS = (("day", 24 * 3600), ("hour", 3600), ("minute", 60))
_SIZES = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


@dataclass(frozen=True)
class Stored:
    """One thing that is stored, and nothing needs.

    ``kind`` is ``environment``, ``image`` (of no environment any more), ``layers`` (of a build that came to no image), ``bundle``,
    ``definition`` (of tasks of ECS), or ``output`` (of an execution that has ended).
    """

    kind: str
    name: str
    size_bytes: int
    used_at: float
    """Unix time."""


@dataclass(frozen=True)
class Discarded:
    """What became of something that was to be removed. ``note``: what is left of it elsewhere, in a sentence."""

    is_gone: bool
    note: str = ""


@dataclass(frozen=True)
class Limits:
    """How long, and how much of it, things are kept that nothing needs."""

    unused_s: float
    """Of what can be made again; output is kept as long as there is room."""
    limit_bytes: int
    """Of all together."""


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


def superfluous(items: Iterable[Stored], limits: Limits, now: float) -> list[tuple[Stored, str]]:
    """What goes, with the reason: what was not used for so long, and then, until the rest is within the limit, what was not
    used for longest: first of what can be made again, then of output.

    What was in use in the last ten minutes stays in any case, output apart: a deploy may be under way.
    """
    gone, kept = [], []
    for item in items:
        idle_s = now - item.used_at
        if item.kind != OUTPUT and idle_s > limits.unused_s:
            gone.append((item, f"not used for {span(idle_s)}"))
        else:
            kept.append(item)
    over_bytes = sum(item.size_bytes for item in kept) - limits.limit_bytes
    for item in sorted(kept, key=lambda item: (item.kind == OUTPUT, item.used_at)):
        if over_bytes <= 0:
            break
        if item.kind == OUTPUT or now - item.used_at > DEPLOY_S:
            gone.append((item, f"over the disk limit of {size(limits.limit_bytes)}"))
            over_bytes -= item.size_bytes
    return gone


def span(seconds: float) -> str:
    """``8 days``, for people."""
    for unit, length in _SPANS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "a moment"


def size(size_bytes: int) -> str:
    """``20 GiB``, for people."""
    for unit, length in _SIZES:
        if size_bytes >= length:
            return f"{size_bytes / length:.4g} {unit}"
    return f"{size_bytes} bytes"
