"""A worker's cgroup: what bounds the cpu and memory of a child and of all that it starts.

The supervisor stays outside: with a tenth of a cpu it must still answer a cancellation at once, and it reports that the child was
out of memory. Moving a process into a cgroup can wait 10 ms for the kernel, so that is done when the two are forked, which is before
there is work for them; writing the limits, at the launch, takes microseconds.

Version 2 has one folder for both limits, version 1 one for each. Where folders may be made is found out by the runner.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Collection, List, Optional, Sequence, Set, Tuple

_PERIOD_US, _LONGEST_PERIOD_US, _SHORTEST_QUOTA_US = 100_000, 1_000_000, 1_000
"""Linux takes periods up to a second and quotas from a millisecond on:
https://docs.kernel.org/scheduler/sched-bwc.html, 2026-11-24"""


class Cgroup:
    """The folders of one worker's cgroup."""

    def __init__(self, folders: Collection[str]) -> None:
        self.folders = list(folders)

    @classmethod
    def make(cls, parents: Sequence[str], child_pid: int) -> Cgroup:
        """Makes one below each of ``parents`` and moves the child into it. Raises OSError; then nothing is left."""
        pid = os.getpid()
        made = cls([f"{parent}/{pid}-{processes.start_of(pid)}" for parent in parents])
        try:
            for folder in made.folders:
                os.mkdir(folder)  # noqa: PTH102 - pathlib is not imported here
                _write(f"{folder}/cgroup.procs", str(child_pid))
        except OSError:
            made.kill()
            made.remove()
            raise
        return made

    def limit(self, cpu: float, memory_mib: int) -> Set[str]:
        """Sets the limits; which of ``cpu`` and ``memory`` hold now. Raises OSError where the kernel refuses one.

        There is no swap: what is over the limit is killed, not made slow. A file that is not there is passed over: a
        controller that is not delegated, or swap that is not accounted.
        """
        quota, period = cpu_quota(cpu)
        memory = str(memory_mib * 1024 * 1024)
        found = set()
        for folder in self.folders:
            for name, text, limited in (
                ("cpu.max", f"{quota} {period}", "cpu"),
                ("memory.max", memory, "memory"),
                ("memory.swap.max", "0", ""),
                ("cpu.cfs_period_us", str(period), ""),
                ("cpu.cfs_quota_us", str(quota), "cpu"),
                ("memory.limit_in_bytes", memory, "memory"),
                ("memory.memsw.limit_in_bytes", memory, ""),
            ):
                with suppress(FileNotFoundError):
                    _write(f"{folder}/{name}", text)
                    found.add(limited)
        return found - {""}

    def oom_events(self) -> Optional[str]:
        """The file that counts the processes which the kernel killed for lack of memory in here."""
        return self._find(("memory.events", "memory.oom_control"))

    def peak_bytes(self) -> int:
        """The most memory that was in use, page cache included; 0 where nobody counts."""
        path = self._find(("memory.peak", "memory.max_usage_in_bytes"))
        with suppress(OSError, ValueError):
            return int(_read(path)) if path else 0
        return 0

    def kill(self) -> bool:
        """Kills what is in here, whatever session it is in and whoever its parent is; whether there was something."""
        found = False
        for folder in self.folders:
            for pid in self._processes(folder):
                found = True
                with suppress(OSError):  # Linux 5.14: all of it in one step
                    _write(f"{folder}/cgroup.kill", "1")
                    break
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        return found

    def remove(self) -> bool:
        """Removes it; False where that cannot be done, since a process is left."""
        for folder in self.folders:
            with suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106
        return not any(map(os.path.isdir, self.folders))

    def _processes(self, folder: str) -> List[int]:
        with suppress(OSError):
            return [int(pid) for pid in _read(f"{folder}/cgroup.procs").split()]
        return []

    def _find(self, names: Collection[str]) -> Optional[str]:
        for folder in self.folders:
            for name in names:
                if os.path.exists(f"{folder}/{name}"):  # noqa: PTH110
                    return f"{folder}/{name}"
        return None


def cpu_quota(cpu: float) -> Tuple[int, int]:
    """How many microseconds of cpu there are in a period of how many."""
    period = _PERIOD_US
    if cpu * period < _SHORTEST_QUOTA_US:
        period = _LONGEST_PERIOD_US
    return max(_SHORTEST_QUOTA_US, int(cpu * period)), period


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123
        return file.read()
