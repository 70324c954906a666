"""The data folder as a whole: made for this user alone, and held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from multinode.errors import Conflict, InputError


def prepare(data_dir: Path) -> None:
    """Makes the data folder, for this user alone. Raises InputError where that is not possible."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        data_dir.chmod(0o700)
    except OSError as error:
        message = f"The data folder {data_dir} cannot be used: {error.strerror}."
        raise InputError(message, "Choose another with --data-dir or MULTINODE_HOME.") from error


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Holds the data folder. Raises Conflict where another control plane does."""
    with (data_dir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            message = f"Another control plane (pid {file.read().strip()}) uses {data_dir}."
            raise Conflict(
                message, "Stop it with `multinode server stop`, or use another --data-dir."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
