"""How many invocations a worker may serve, which it was handed and has not begun, and which ends it has not told. Pure."""

from __future__ import annotations

from collections import deque

from .. import limits, wire
from .endings import UNSTARTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Iterable, List


class Serving:
    """What a worker has been handed, from its assignment on."""

    def __init__(self, assignment: wire.Assignment) -> None:
        self._max = assignment.max_invocations
        self._handed = 1 if assignment.execution_id else 0
        self._is_stopped = False
        self._held: Deque[wire.Task] = deque()
        self._ends: List[wire.Report] = []

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

    def keep_end(self, report: wire.Report) -> None:
        """An end that goes with the next request."""
        self._ends.append(report)

    def take_ends(self) -> List[wire.Report]:
        """All ends that are not told yet; whoever takes them tells them."""
        ends, self._ends = self._ends, []
        return ends

    def request(self, *, import_ms: float = 0.0) -> wire.NextRequest:
        """Asks for more and tells the ends that are kept."""
        return wire.NextRequest(
            number=self._handed + 1,
            most=1,
            reports=self.take_ends() or None,
            import_ms=import_ms,
            wait_s=limits.WAIT_S,
        )


def give_back(tasks: Iterable[wire.Task]) -> List[wire.Report]:
    """The reports of tasks that no code has seen."""
    return [wire.Report(task.execution_id, end=UNSTARTED) for task in tasks]
