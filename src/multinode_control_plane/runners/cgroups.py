"""Where workers' cgroups are made on this machine, and whether they can be.

It may where this process is in a cgroup that was handed over to it: one of the user's own, one that systemd delegates (``Delegate=yes``),
or a container's whole tree. Version 2 limits in folders whose own parent holds no process, so this process may
have to move into a folder beside its workers. Version 1 knows no delegation: there it has to be a container's whole tree.

What is written here is a folder of this control plane, ``multinode-<digest>``, and in it one for each worker, which its supervisor makes and
removes (``multinode.worker.cgroup``). This module removes what killed ones have left.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from multinode.worker import processes
from multinode.worker.cgroup import Cgroup

CONTROLLERS = ("cpu", "memory")
OWN_FOLDER = "multinode-server"
"""Where this process moves to when the cgroup that it was started in is to have folders with limits."""
SYSTEMD = Path("/run/systemd/system")
"""There where systemd runs: sd_booted(3)."""
KILL_TIMEOUT_S = 5.0
_STEP_S = 0.005


class CannotLimitError(Exception):
    """Why no cgroup can be made, in words."""


@dataclass(frozen=True)
class Cgroups:
    """What can be limited here. ``parents`` are the folders for workers' cgroups; ``reason`` says why ``enforces`` is not all."""

    parents: tuple[str, ...] = ()
    enforces: tuple[str, ...] = ()
    reason: str = ""

    def sweep(self) -> None:
        """Kills and removes the cgroups of supervisors that are gone. Blocks."""
        for parent in self.parents:
            with suppress(OSError):
                for folder in Path(parent).iterdir():
                    pid, _, start = folder.name.partition("-")
                    if pid.isdigit() and str(processes.start_of(int(pid))) != start:
                        clear([str(folder)])

    def close(self) -> None:
        """Removes the folder of this control plane where no worker is left. Blocks."""
        self.sweep()
        for parent in self.parents:
            with suppress(OSError):  # it has workers
                Path(parent).rmdir()


def clear(folders: Collection[str]) -> None:
    """Kills what is in the cgroup of a supervisor that is gone, and removes it. Blocks until that is done."""
    cgroup = Cgroup(folders)
    given_up_at = time.monotonic() + KILL_TIMEOUT_S
    while not cgroup.remove() and time.monotonic() < given_up_at:
        cgroup.kill()
        time.sleep(_STEP_S)


def find(data_dir: Path, *, proc: Path = Path("/proc/self")) -> Cgroups:
    """What can be limited for this control plane, tried on a process that does nothing. Blocks for about 10 ms."""
    if sys.platform != "linux":
        return Cgroups(reason="there are cgroups on Linux only")
    name = f"multinode-{hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:12]}"
    try:
        parents = [_make(place / name) for place in places(proc)]
        found = Cgroups(tuple(parents))
        found.sweep()
        enforces = _try(parents)
    except CannotLimitError as error:
        return Cgroups(reason=str(error))
    except OSError as error:
        return Cgroups(reason=f"no cgroup can be made: {error}")
    missing = " or ".join(name for name in CONTROLLERS if name not in enforces)
    reason = (
        f"the cgroup {Path(parents[0]).parent} has no controller for {missing}" if missing else ""
    )
    return Cgroups(tuple(parents), enforces, reason)


def _make(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    if (folder / "cgroup.subtree_control").exists():
        _enable(folder)
    return str(folder)


def _try(parents: list[str]) -> tuple[str, ...]:
    """Which limits hold for a process that is put below ``parents``. Raises OSError where none can be."""
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as process:
        cgroup = None
        try:
            cgroup = Cgroup.make(parents, process.pid)
            found = cgroup.limit(cpu=1.0, memory_mib=64)
        finally:
            process.kill()
            process.wait()
            if cgroup is not None:
                cgroup.remove()
    return tuple(name for name in CONTROLLERS if name in found)


# --- places -------------------------------------------------------------------------------------------


class Hierarchy(NamedTuple):
    """One tree of cgroups: where it is mounted, and this process's own folder in it."""

    top: Path
    own: Path

    def up(self) -> Iterator[Path]:
        """The own folder and those above it, as far as can be seen."""
        yield self.own
        while self.own != self.top:
            self = self._replace(own=self.own.parent)
            yield self.own


def places(proc: Path) -> list[Path]:
    """The folders in which this control plane may make one: one for version 2, one or two for version 1."""
    trees = hierarchies(proc)
    second = trees.get("")
    if second is not None and set(CONTROLLERS) & _words(second.top / "cgroup.controllers"):
        return [_second_version_place(second)]
    first = [trees[name] for name in CONTROLLERS if name in trees]
    if not first:
        message = "no cgroups are mounted"
        raise CannotLimitError(message)
    for tree in first:
        if tree.own != tree.top:
            inner = tree.own.relative_to(tree.top)
            message = (
                f"it runs in the cgroup (version 1) {str(inner)!r}, which is another program's"
            )
            raise CannotLimitError(message)
        _check_writable(tree.own)
    return list(dict.fromkeys(tree.own for tree in first))


def hierarchies(proc: Path) -> dict[str, Hierarchy]:
    """The trees that this process sees, by controller; version 2's by the empty name."""
    paths: dict[str, str] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    found = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, top = before.split()[3:5]
        for name in [""] if kind == "cgroup2" else options.split(","):
            inner = _inner(paths.get(name), root)
            if inner is not None:
                found[name] = Hierarchy(Path(top), Path(top) / inner)
    return found


def _inner(path: str | None, root: str) -> str | None:
    """``path`` from the mounted ``root`` on; None where it is outside of it."""
    if path is None or ".." in path.split("/"):
        return None
    root = root.rstrip("/")
    return path[len(root) :].strip("/") if f"{path}/".startswith(f"{root}/") else None


# --- version 2 ----------------------------------------------------------------------------------------


def _second_version_place(tree: Hierarchy) -> Path:
    """The nearest folder that is ours and whose own folders can have limits."""
    reasons = []
    for folder in tree.up():
        if folder.name == OWN_FOLDER:
            continue
        try:
            _check_ours(folder, tree)
            _enable(folder)
        except CannotLimitError as error:
            reasons.append(str(error))
        else:
            return folder
    raise CannotLimitError(reasons[0])


def _check_ours(folder: Path, tree: Hierarchy) -> None:
    """Raises CannotLimitError where another program, such as systemd, has this folder."""
    _check_writable(folder)
    if os.geteuid() != 0:
        is_ours = folder.stat().st_uid == os.geteuid()
    elif SYSTEMD.is_dir():
        is_ours = any(_is_delegated(above) for above in tree._replace(own=folder).up())
    else:
        is_ours = True
    if not is_ours:
        message = f"the cgroup {folder} is not delegated to it"
        raise CannotLimitError(message)


def _check_writable(folder: Path) -> None:
    if not all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs")):
        message = f"the cgroup {folder} is not writable for it"
        raise CannotLimitError(message)


def _is_delegated(folder: Path) -> bool:
    """Whether systemd says that it leaves this folder to the service: https://systemd.io/CGROUP_DELEGATION, 2026-11-24"""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _enable(folder: Path) -> None:
    """Has the folders in this one get limits. Raises CannotLimitError where that cannot be."""
    wanted = [name for name in CONTROLLERS if name in _words(folder / "cgroup.controllers")]
    if not wanted:
        message = f"neither cpu nor memory is delegated to the cgroup {folder}"
        raise CannotLimitError(message)
    control = folder / "cgroup.subtree_control"
    if set(wanted) <= _words(control):
        return
    text = " ".join(f"+{name}" for name in wanted)
    try:
        control.write_text(text)
    except OSError:  # EBUSY: a folder with processes of its own
        _move_down(folder)
        try:
            control.write_text(text)
        except OSError as error:
            message = f"the cgroup {folder} has other processes in it"
            raise CannotLimitError(message) from error


def _move_down(folder: Path) -> None:
    """Moves this process, and where all of the folder was handed over the others too, into a folder of their own."""
    inside = _words(folder / "cgroup.procs")
    if inside != {str(os.getpid())} and not _is_delegated(folder):
        return
    own = folder / OWN_FOLDER
    own.mkdir(exist_ok=True)
    for pid in inside:
        with suppress(ProcessLookupError):
            (own / "cgroup.procs").write_text(pid)


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()
