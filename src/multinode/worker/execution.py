"""The execution at hand, as its supervisor sees it: everything that begins anew with each invocation of a worker."""

from __future__ import annotations

import os
from time import monotonic

from .. import wire
from .output import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from .endings import Interrupt
    from .launch import Launch

FIRST_RING_PAUSE_S, LONGEST_RING_PAUSE_S = 0.02, 1.0


class Execution:
    """One execution of a worker: its ``number``th, counted from 1."""

    def __init__(self, task: wire.Task) -> None:
        self.id = task.execution_id
        self.number = task.number
        self.interrupt: Optional[Interrupt] = None
        self.end: Optional[wire.ExecutionEnd] = None
        """How it ended, once that is fixed."""
        self._attempt = task.attempt
        self._next_value = task.first_value_number
        self._began = monotonic()
        self._ring_pause_s = FIRST_RING_PAUSE_S

    def begin(self) -> float:
        """Its code begins now; the time."""
        self._began = monotonic()
        return self._began

    def value(self, text: str) -> wire.Value:
        """The next value that it yields."""
        value = wire.Value(self._next_value, text, self._attempt)
        self._next_value += 1
        return value

    def run_ms(self) -> float:
        """How long its code has run until now."""
        return round((monotonic() - self._began) * 1000, 3)

    def ran_s(self) -> float:
        """How long it has kept its worker until now."""
        return monotonic() - self._began

    def next_ring(self) -> float:
        """When its interrupt is to be rung again; each pause is twice as long as the one before."""
        at = monotonic() + self._ring_pause_s
        self._ring_pause_s = min(2 * self._ring_pause_s, LONGEST_RING_PAUSE_S)
        return at

    def last_report(self) -> wire.Report:
        """Its end, as it is reported."""
        assert self.end is not None, "reported before it has ended"
        return wire.Report(self.id, end=self.end)


def first_task(assignment: wire.Assignment) -> wire.Task:
    """The execution for which a worker was made, as a task; its input is in the assignment."""
    return wire.Task(
        number=1,
        execution_id=assignment.execution_id,
        invocation_id=assignment.invocation_id,
        attempt=assignment.attempt,
        first_value_number=assignment.first_value_number,
    )


def log_of(task: wire.Task, launch: Launch) -> Log:
    """The log of an execution for which its worker was not made: a file beside the worker's, or records with its id."""
    if launch.log_file is None:
        return Log(None, task.execution_id)
    folder = os.path.dirname(launch.log_file)  # noqa: PTH120 - pathlib is not imported here
    return Log(os.path.join(folder, f"{task.execution_id}.jsonl"))  # noqa: PTH118
