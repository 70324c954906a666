"""The files and folders of one worker: the file by which its runner knows it, and its working folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import suppress

from . import processes
from .launch import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional, Sequence


class WorkerFile:
    """``workers/<id>.json``: it is there and locked while its supervisor lives.

    A runner that finds it locked knows that the process which wrote it is alive, whatever became of its pid. A supervisor that fails, or is
    killed, leaves it; its starter then notes in it how that ended, once nothing of the worker is left.
    """

    def __init__(self, path: str, worker_id: str, cgroups: Sequence[str] = ()) -> None:
        """Writes and locks the file, which appears complete and locked. Raises OSError."""
        self._path = path
        pid = os.getpid()
        content = {
            "worker_id": worker_id,
            "pid": pid,
            "start_time": processes.start_of(pid),
            "boot_id": processes.boot_id(),
            "starter_pid": os.getppid(),
            "starter_mark": os.environ.get(processes.STARTER_MARK, ""),
            "cgroups": cgroups,
        }
        draft = f"{path}.{pid}"
        self._fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        line = json.dumps(content).encode() + b"\n"
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), draft)
            os.rename(draft, path)  # noqa: PTH104 - pathlib is not imported here
        except (
            OSError
        ):  # the disk is full: nobody else would remove it before the server's next start
            os.unlink(draft)  # noqa: PTH108
            os.close(self._fd)
            raise

    def remove(self) -> None:
        """Removes the file; its lock ends with this process."""
        with suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108


def note_end(path: str, status: int) -> None:
    """Adds to the file of a supervisor that is gone how it ended: its raw wait status."""
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, json.dumps({"status": status}).encode() + b"\n")
        finally:
            os.close(fd)


class Folders:
    """The working folder, and for a worker that fetches its bundle itself the folder for that; both are the worker's own."""

    def __init__(self, launch: Launch) -> None:
        self._own: Optional[str] = None
        if launch.work_dir is None or launch.code_dir is None:
            parent = os.environ.get("TMPDIR") or "/tmp"
            self._own = os.path.join(parent, f"multinode-{launch.worker_id}")  # noqa: PTH118
            os.mkdir(self._own, 0o700)  # noqa: PTH102
        self.bundle_dir = self._own or ""
        self.work_dir = launch.work_dir or os.path.join(self.bundle_dir, "work")  # noqa: PTH118

    def make_work_dir(self, code_dir: str) -> None:
        """Makes the working folder, with a link to each top-level entry of ``code_dir``: relative reads work, writes stay here."""
        os.mkdir(self.work_dir, 0o700)  # noqa: PTH102
        for entry in os.scandir(code_dir):
            if entry.name != "__pycache__":
                os.symlink(entry.path, os.path.join(self.work_dir, entry.name))  # noqa: PTH118, PTH211

    def remove(self) -> None:
        """Removes all of it, as far as that can be done."""
        for folder in (self.work_dir, self._own):
            if folder is not None:
                remove_tree(folder)


def remove_tree(folder: str) -> None:
    """Removes a folder and what is in it; what cannot be removed stays. ``shutil`` costs 5 ms of imports."""
    with suppress(OSError):
        os.chmod(folder, 0o700)  # noqa: PTH101
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    with suppress(OSError):
                        os.unlink(entry.path)  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
