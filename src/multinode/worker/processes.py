"""Processes as the operating system knows them: who adopts orphans, who dies with whom, what is left, what it cost.

Linux gives all of it (subreaper, parent-death signal, ``/proc``, cgroups). Elsewhere the functions do what can be done there:
process groups. Nothing here knows of invocations.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from functools import lru_cache

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Collection, List, Optional

IS_LINUX = sys.platform == "linux"

STARTER_MARK = "MULTINODE_STARTER"
"""Environment variable of a starter and of all that comes of it: by its value they are found when nobody guards them any more."""

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def preload() -> None:
    """Loads ctypes now, so that a fork of this process has it already."""
    if IS_LINUX:
        _prctl()


def adopt_orphans() -> None:
    """Makes this process the new parent of every descendant whose own parent dies (Linux)."""
    if IS_LINUX:
        _prctl()(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies (Linux); exits at once if it is dead already."""
    if IS_LINUX:
        _prctl()(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def go_first_when_memory_ends() -> None:
    """Makes this process and its descendants the ones that the kernel kills first when memory runs out (Linux)."""
    if IS_LINUX:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - once a worker
            file.write("1000")


def start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where that is unknown. A reused pid has another one."""
    fields = _stat_fields(str(pid))
    return int(fields[19]) if fields else 0


def parent_of(pid: int) -> int:
    """The parent of a process; 0 where that is unknown."""
    fields = _stat_fields(str(pid))
    return int(fields[1]) if fields else 0


@lru_cache(maxsize=None)
def boot_id() -> str:
    """An id that each boot of this machine gets anew; empty where there is none."""
    with suppress(OSError):
        return _read("/proc/sys/kernel/random/boot_id").strip()
    return ""


def children(parent_pid: Optional[int] = None) -> List[int]:
    """The children of a process (default: this one), zombies too; empty where there is no ``/proc``.

    Scans ``/proc`` (10 ms where there are 200 processes) where the kernel's own list of this process's is not built in, or empty.
    """
    if parent_pid is None:
        listed = _listed_children()
        if listed:
            return listed
    parent = str(os.getpid() if parent_pid is None else parent_pid)
    found = []
    with suppress(OSError):
        for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib would build thousands of paths
            if name.isdigit() and _stat_fields(name)[1:2] == [parent]:
                found.append(int(name))
    return found


def _listed_children() -> List[int]:
    found: List[int] = []
    if IS_LINUX:
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208
            with suppress(OSError):  # a thread that is gone, a kernel without the list
                found.extend(map(int, _read_raw(f"/proc/self/task/{thread}/children").split()))
    return found


def _read_raw(path: str) -> bytes:
    """All of it, in a third of the time that ``open`` takes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while True:
            piece = os.read(fd, 65536)
            if not piece:
                return data
            data += piece
    finally:
        os.close(fd)


def close_all_but(kept: Collection[int]) -> None:
    """Closes every descriptor from 3 on that is not in ``kept``."""
    folder = "/proc/self/fd" if IS_LINUX else "/dev/fd"
    for name in os.listdir(folder):  # noqa: PTH208 - descriptors, not paths
        fd = int(name)
        if fd > 2 and fd not in kept:
            with suppress(OSError):  # the descriptor that listdir had open
                os.close(fd)


def kill_group(leader_pid: int) -> None:
    """SIGKILL to a process and to the group that it leads; nothing happens where both are gone."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(leader_pid, signal.SIGKILL)


def kill_remaining_children() -> None:
    """Kills and reaps children until there are none, including those that their ends turn into ours.

    Blocks until the last one is gone. Costs one system call where there is none. Only for a process that adopts orphans, and
    that has no child that is to live on.
    """
    while True:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if reaped:
            continue
        found = children()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found and not IS_LINUX:
            return
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


class Reaped(Record):
    """A child that has ended. One of ``exit_code`` and ``signal`` is None."""

    pid: int
    exit_code: Optional[int]
    signal: Optional[int]
    peak_memory_bytes: int


def reap_one(leader_pid: int) -> Optional[Reaped]:
    """Reaps a child that has ended; None where none has.

    If it is ``leader_pid``, the group that it leads is killed first: until it is reaped, its pid is nobody else's.
    """
    try:
        candidate = -1
        if hasattr(os, "waitid"):  # not on macOS
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return None
            candidate = ended.si_pid
            if candidate == leader_pid:
                kill_group(leader_pid)
        pid, status, usage = os.wait4(candidate, os.WNOHANG)
    except ChildProcessError:
        return None
    if not pid:
        return None
    if pid == leader_pid and not hasattr(os, "waitid"):
        kill_group(leader_pid)
    is_signalled = os.WIFSIGNALED(status)
    return Reaped(
        pid=pid,
        exit_code=None if is_signalled else os.WEXITSTATUS(status),
        signal=os.WTERMSIG(status) if is_signalled else None,
        peak_memory_bytes=peak_bytes(usage.ru_maxrss),
    )


def peak_bytes(max_rss: int) -> int:
    """``ru_maxrss`` in bytes: it counts KiB, on macOS bytes."""
    return max_rss if sys.platform == "darwin" else max_rss * 1024


class PeakMemory:
    """The most memory that this process, or one of the children that it has waited for, has had since `begin`."""

    def __init__(self) -> None:
        self._children_before = 0

    def begin(self) -> None:
        """Counts anew, where the kernel does so (Linux). What a child has had until now does not count any more."""
        import resource

        self._children_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        with suppress(OSError):
            fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"5")
            finally:
                os.close(fd)

    def bytes(self) -> int:
        """A child that had no more than one before `begin` is not seen: the kernel keeps the largest of all."""
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        return peak_bytes(max(peak, children) if children > self._children_before else peak)


class OomCounter:
    """Counts the processes of a memory cgroup (v1 or v2; this process's own) that the kernel killed for lack of memory."""

    def __init__(
        self,
        proc: str = "/proc/self",
        cgroups: str = "/sys/fs/cgroup",
        *,
        events: Optional[str] = None,
    ) -> None:
        """``events`` is the file to read where it is known."""
        self._path = events or _oom_events_file(proc, cgroups)
        self.begin()

    def begin(self) -> None:
        """Counts from now on."""
        self._before = self._read()

    def has_risen(self) -> bool:
        """Whether one was killed since it began; False where nobody counts."""
        return self._read() > self._before

    def _read(self) -> int:
        if self._path is not None:
            with suppress(OSError, ValueError):
                for line in _read_raw(self._path).splitlines():
                    name, _, count = line.partition(b" ")
                    if name == b"oom_kill":
                        return int(count)
        return 0


def _oom_events_file(proc: str, cgroups: str) -> Optional[str]:
    """The file with the line ``oom_kill N``. In a container with its own cgroup namespace the path is ``/``."""
    with suppress(OSError):
        for line in _read(f"{proc}/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                candidates = [
                    f"{cgroups}/memory{path}/memory.oom_control",
                    f"{cgroups}/memory/memory.oom_control",
                ]
            elif not controllers:
                candidates = [
                    f"{cgroups}{path}/memory.events",
                    f"{cgroups}/memory.events",
                ]
            else:
                continue
            for candidate in candidates:
                if os.path.exists(candidate):  # noqa: PTH110 - pathlib is not imported here
                    return candidate
    return None


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not imported here
        return file.read()


def _stat_fields(pid: str) -> List[str]:
    """The fields of ``/proc/<pid>/stat`` from the third (state) on; empty where the process is gone."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - for thousands
        text = file.read().decode("utf-8", "replace")
        return text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return []


@lru_cache(maxsize=None)
def _prctl() -> Any:
    import ctypes  # 4 ms, and Linux only

    return ctypes.CDLL(None, use_errno=True).prctl
