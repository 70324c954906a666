"""How many invocations a worker may serve, which it was handed and has not begun, and which ends it has not told. Pure."""

from __future__ import annotations

from collections import deque

from .. import limits, wire
from .endings import UNSTARTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Iterable, List, Tuple

AHEAD_S = 0.05
"""How much work a worker may hold."""
MOST = 64
MOST_CHARACTERS = 4 * 1024 * 1024
"""How much of results one request takes: as JSON, where one may take six bytes, with values that wait it stays below the 32 MiB that
the control plane reads."""
SHORT_MEMORY = 8
"""How many of its last executions say how long the next ones will take."""


class Serving:
    """What a worker has been handed, from its assignment on."""

    def __init__(self, assignment: wire.Assignment) -> None:
        self._max = assignment.max_invocations
        self._handed = 1 if assignment.execution_id else 0
        self._is_stopped = False
        self._held: Deque[wire.Task] = deque()
        self._ends: List[wire.Report] = []
        self._ran_s: Deque[float] = deque(maxlen=SHORT_MEMORY)

    @property
    def has_held(self) -> bool:
        """Whether it holds a task that no code has seen."""
        return bool(self._held)

    @property
    def may_go_on(self) -> bool:
        """Whether the invocation at hand may be followed by another."""
        return self.has_held or self.may_ask

    @property
    def may_ask(self) -> bool:
        """Whether it may be handed another."""
        return not self._is_stopped and (self._max == 0 or self._handed < self._max)

    def stop(self) -> None:
        """Nothing more is asked for."""
        self._is_stopped = True

    def take(self, tasks: List[wire.Task]) -> None:
        """They were handed to this worker, and are held."""
        self._held.extend(tasks)
        self._handed += len(tasks)

    def next_held(self) -> wire.Task:
        """The task to begin now."""
        return self._held.popleft()

    def give_back(self) -> List[wire.Report]:
        """The reports by which what is held is given back."""
        given, self._held = self._held, deque()
        return give_back(given)

    def keep_end(self, report: wire.Report, ran_s: float) -> None:
        """An end that goes with the next request, of an execution that took so long."""
        self._ends.append(report)
        self._ran_s.append(ran_s)

    def take_ends(self) -> List[wire.Report]:
        """All ends that are not told yet; whoever takes them tells them."""
        ends, self._ends = self._ends, []
        return ends

    def request(self, *, is_idle: bool, import_ms: float = 0.0) -> wire.NextRequest:
        """Asks for more and tells the ends that are kept, as many as one request takes.

        A worker that has nothing to do, and has told all, may wait for the answer.
        """
        ends, self._ends = _split(self._ends)
        return wire.NextRequest(
            number=self._handed + 1,
            most=self._most(),
            reports=ends or None,
            import_ms=import_ms,
            wait_s=limits.WAIT_S if is_idle and not self._ends else 0.0,
        )

    def _most(self) -> int:
        """As many as it would run in ``AHEAD_S``, going by its last ones, and may have; those that it holds count."""
        mean_s = sum(self._ran_s) / len(self._ran_s) if self._ran_s else AHEAD_S
        most = min(MOST, int(AHEAD_S / max(mean_s, 1e-6))) - len(self._held)
        return max(1, most if self._max == 0 else min(most, self._max - self._handed))


def _split(ends: List[wire.Report]) -> Tuple[List[wire.Report], List[wire.Report]]:
    """Those that go first, at least one, and the others."""
    size = 0
    for position, report in enumerate(ends):
        size += len(report.end.result or "") if report.end is not None else 0
        if position and size > MOST_CHARACTERS:
            return ends[:position], ends[position:]
    return ends, []


def give_back(tasks: Iterable[wire.Task]) -> List[wire.Report]:
    """The reports of tasks that no code has seen."""
    return [wire.Report(task.execution_id, end=UNSTARTED) for task in tasks]
