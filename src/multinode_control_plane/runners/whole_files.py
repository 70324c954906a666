"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Writes a file that only this user can read, in place of the one that is there. Raises OSError; then that one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        keep(descriptor, draft, path)
    finally:
        os.close(descriptor)
        draft.unlink(missing_ok=True)


def keep(descriptor: int, draft: Path, path: Path) -> None:
    """Puts a written file, open as ``descriptor``, under its name. Blocks until that is on disk."""
    os.fsync(descriptor)
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # not every file system can
        os.fsync(folder)
    os.close(folder)
