"""The sizes in which AWS Fargate makes tasks, and the one that a function gets. Pure.

The source is https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-cpu-memory-error.html (read in November 2026).
The two largest rows need platform version 1.4.0, which is what ``LATEST`` has meant since 2021. A size is paid for whole, from the
start of the image's pull on, whatever of it the function uses: https://aws.amazon.com/fargate/pricing/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multinode.errors import InvalidRequest
from multinode.wire import WorkerSize

UNITS_OF_CPU = 1024
"""ECS counts a virtual CPU in 1024 units."""
_GIB = 1024


@dataclass(frozen=True)
class _Row:
    """What memory a task of so many virtual CPUs may have, in MiB, ascending."""

    cpu: float
    memory_mib: Sequence[int]


_TABLE = (
    _Row(0.25, (512, 1 * _GIB, 2 * _GIB)),
    _Row(0.5, range(1 * _GIB, 4 * _GIB + 1, _GIB)),
    _Row(1, range(2 * _GIB, 8 * _GIB + 1, _GIB)),
    _Row(2, range(4 * _GIB, 16 * _GIB + 1, _GIB)),
    _Row(4, range(8 * _GIB, 30 * _GIB + 1, _GIB)),
    _Row(8, range(16 * _GIB, 60 * _GIB + 1, 4 * _GIB)),
    _Row(16, range(32 * _GIB, 120 * _GIB + 1, 8 * _GIB)),
)
SIZES = tuple(WorkerSize(float(row.cpu), memory) for row in _TABLE for memory in row.memory_mib)
"""All that are legal, ascending by cpu, then by memory."""


def size_for(cpu: float, memory_mib: int) -> WorkerSize:
    """The smallest size that holds ``cpu`` virtual CPUs and ``memory_mib``. Raises InvalidRequest where none does.

    The first in the table that holds both is the cheapest one too, whatever a CPU and a GiB cost: each row's memory is in no finer
    steps than that of the row before, so a later one that holds them has no less of either.
    """
    for size in SIZES:
        if size.cpu >= cpu and size.memory_mib >= memory_mib:
            return size
    most_cpu, most_mib = SIZES[-1].cpu, SIZES[-1].memory_mib
    message = (
        f"Fargate has no size with {cpu:g} CPUs and {memory_mib} MiB: "
        f"the largest has {most_cpu:g} and {most_mib}."
    )
    raise InvalidRequest(message, "Set a smaller cpu or memory.")


def cpu_units(size: WorkerSize) -> int:
    """Its cpu as ECS counts it: 256 to 16384."""
    return int(size.cpu * UNITS_OF_CPU)
