"""What follows from what: pure functions of snapshots and the time. No clock, no store, no randomness of its own.

The table that these functions implement is in `docs/architecture.md`; the tests go through it line by line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multinode.limits import MAX_RETRY_DELAY_S
from multinode.wire import (
    CANCELLED,
    CANCELLING,
    FAILED,
    FINAL_STATUSES,
    PENDING,
    SUCCEEDED,
    TIMED_OUT,
    ExecutionEnd,
    FunctionError,
    FunctionSettings,
)

NOT_MADE_FIRST_DELAY_S = 1.0
NOT_MADE_MAX_DELAY_S = 60.0


@dataclass(frozen=True)
class Settled:
    """What becomes of an invocation when an execution of it has ended.

    ``due_at`` is set where it is PENDING again; ``failed`` says that the attempt counts as a failed one.
    """

    status: str
    error: FunctionError | None
    due_at: float | None = None
    failed: bool = False


def settle(
    *,
    status: str,
    end: ExecutionEnd,
    failed_before: int,
    settings: FunctionSettings,
    now: float,
    jitter: float,
) -> Settled:
    """What becomes of an invocation in ``status`` whose execution ended with ``end``.

    ``failed_before`` counts earlier failed attempts; ``jitter`` is random in [0, 1).
    """
    if end.outcome == "succeeded":
        return Settled(SUCCEEDED, None)
    if end.outcome == "timed_out":
        return Settled(TIMED_OUT, end.error)
    if end.outcome == "cancelled":
        return Settled(CANCELLED, end.error)
    if status == CANCELLING:
        return Settled(CANCELLED if end.outcome == "lost" else FAILED, end.error, failed=True)
    if end.retryable and failed_before < settings.max_retries:
        delay_s = retry_delay(settings.retry_delay_s, failed_before, jitter)
        return Settled(PENDING, end.error, due_at=now + delay_s, failed=True)
    return Settled(FAILED, end.error, failed=True)


def retry_delay(first_s: float, failed_before: int, jitter: float) -> float:
    """Seconds before the next attempt: doubles each time up to an hour, less up to a fifth by ``jitter``,

    so that many that failed together do not come back together. The first is never shorter than asked for.
    """
    doubled: float = min(first_s * 2.0 ** min(failed_before, 40), MAX_RETRY_DELAY_S)
    return doubled if failed_before == 0 else doubled * (1 - 0.2 * jitter)


def not_made_delay(times_before: int) -> float:
    """Seconds before a worker that could not be made is tried again: 1, 2, 4 … up to 60."""
    return float(min(NOT_MADE_FIRST_DELAY_S * 2.0 ** min(times_before, 10), NOT_MADE_MAX_DELAY_S))


@dataclass(frozen=True)
class Room:
    """Room on the machine: all of it, what is left of it, or what a worker takes."""

    cpu: float
    memory_mib: int

    def within(self, whole: Room) -> Room:
        """At most ``whole``: a function that asks for more than there is gets all there is.

        For memory, which deploy refuses, that happens where the capacity was lowered later.
        """
        return Room(min(self.cpu, whole.cpu), min(self.memory_mib, whole.memory_mib))

    def fits(self, left: Room) -> bool:
        """Whether there is that much ``left``."""
        return self.cpu <= left.cpu + 1e-9 and self.memory_mib <= left.memory_mib

    def less(self, taken: Room) -> Room:
        """What is left when ``taken`` is."""
        return Room(self.cpu - taken.cpu, self.memory_mib - taken.memory_mib)


class Pool(NamedTuple):
    """Whose invocations a worker may serve."""

    project: str
    function: str
    version_id: str


@dataclass(frozen=True)
class Waiting:
    """A ready invocation near the head of its function's queue, and what its function asks for."""

    seq: int
    room: Room
    pool: Pool


@dataclass(frozen=True)
class Idle:
    """A worker that waits for its next invocation since ``since``, and takes ``wanted`` of them at once."""

    worker_id: str
    pool: Pool
    room: Room
    since: float
    wanted: int = 1


@dataclass
class Placed:
    """What becomes of ready invocations: ``handed`` go to workers that are there, for the ``made`` new ones are made.

    ``leaving`` are idle workers that give up a slot of their function to another version. ``blocked`` is the first that
    found no room: the younger ones wait behind it.
    """

    handed: list[tuple[Waiting, str]] = field(default_factory=list)
    made: list[Waiting] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    blocked: Waiting | None = None


def place(
    waiting: Iterable[Waiting],
    left: Room,
    whole: Room,
    *,
    slots: Mapping[tuple[str, str], int],
    idle: Iterable[Idle] = (),
    overtaking: bool = False,
) -> Placed:
    """Where ready invocations go: oldest first, to an idle worker of their version, else to a new one.

    ``slots`` says of each function (project, name) how many more workers it may have; below 0 are too many, and none of
    its idle ones is used then. The first that finds no room ends it: if younger, smaller ones went ahead, it could wait for
    ever. With ``overtaking`` they may.
    """
    placed, free, resting = Placed(), dict(slots), _Resting(idle)
    for candidate in sorted(waiting, key=lambda item: item.seq):
        function = candidate.pool[:2]
        worker = resting.take(candidate.pool) if free.get(function, 0) >= 0 else None
        needed = candidate.room.within(whole)
        if worker is not None:
            placed.handed.append((candidate, worker))
        elif free.get(function, 0) <= 0:
            placed.leaving += resting.dismiss(function)
        elif needed.fits(left):
            placed.made.append(candidate)
            left, free[function] = left.less(needed), free[function] - 1
        else:
            placed.blocked = placed.blocked or candidate
            if not overtaking:
                break
    return placed


class _Resting:
    """The idle workers that were given nothing yet, or could take more."""

    def __init__(self, idle: Iterable[Idle]) -> None:
        # The one that worked last comes first: the others may be let go in the end.
        self._by_pool: dict[Pool, list[list[Any]]] = {}
        for worker in sorted(idle, key=lambda item: item.since, reverse=True):
            self._by_pool.setdefault(worker.pool, []).append([0, worker])

    def take(self, pool: Pool) -> str | None:
        """The worker of this version that was given the fewest so far and takes one more."""
        able = [item for item in self._by_pool.get(pool, ()) if item[0] < item[1].wanted]
        if not able:
            return None
        chosen = min(able, key=lambda item: item[0])
        chosen[0] += 1
        return str(chosen[1].worker_id)

    def dismiss(self, function: tuple[str, str]) -> list[str]:
        """One of the function's that was given nothing, so that its slot becomes free; it is not there any more."""
        for pool, workers in self._by_pool.items():
            for item in workers:
                if pool[:2] == function and item[0] == 0:
                    workers.remove(item)
                    return [item[1].worker_id]
        return []


def give_way(needed: Room, left: Room, idle: Iterable[Idle]) -> list[str]:
    """The idle workers that have to leave for ``needed`` to fit, those first that have waited longest; none where all would not do."""
    leaving = []
    for worker in sorted(idle, key=lambda item: item.since):
        if needed.fits(left):
            break
        leaving.append(worker.worker_id)
        left = Room(left.cpu + worker.room.cpu, left.memory_mib + worker.room.memory_mib)
    return leaving if needed.fits(left) else []


@dataclass(frozen=True)
class PendingFacts:
    """What the reason of a PENDING invocation is made from. ``worker_state`` is that of its live worker, if any."""

    waiting: str | None
    due_at: float | None
    note: str | None
    failed_attempts: int
    worker_state: str | None
    slots_used: int
    max_concurrency: int
    worker_note: str | None = None
    """What the making of the worker waits for, as its runner says."""
    held_back: bool = False
    """Whether it must wait for the next start of the control plane, which is stopping."""


def pending_reason(facts: PendingFacts, now: float) -> str:
    """Why an invocation is not running yet, in the words of SPEC's states."""
    if facts.worker_note and facts.worker_state in ("requested", "accepted"):
        return facts.worker_note
    if facts.worker_state == "requested":
        return "starting a worker"
    if facts.worker_state == "accepted":
        return "waiting for its worker to come up"
    if facts.worker_state == "ready":
        return "importing main.py"
    if facts.waiting == "delayed" and facts.due_at is not None:
        left_s = max(0, round(facts.due_at - now))
        if facts.note:
            return f"{facts.note} (next try in {left_s} s)"
        if facts.failed_attempts:
            return f"retry in {left_s} s"
        return "delayed until " + _utc(facts.due_at)
    if facts.held_back:
        return "waiting for the next start of the control plane, which is stopping"
    if facts.slots_used >= facts.max_concurrency:
        return f"waiting for max_concurrency ({facts.slots_used} of {facts.max_concurrency} in use)"
    return "waiting for room on this machine"


def next_try_at(facts: PendingFacts) -> float | None:
    """When it is due, where it waits for a time (POSIX seconds); None where what it waits for has no time."""
    return facts.due_at if facts.worker_state is None and facts.waiting == "delayed" else None


def _utc(seconds: float) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def changes(
    before: Sequence[tuple[str, FunctionSettings]], after: Sequence[tuple[str, FunctionSettings]]
) -> list[str]:
    """What differs between two versions' functions, in words, in the order of ``after``."""
    old, new = dict(before), dict(after)
    found = [f"function {name}: added" for name in new if name not in old]
    for name in new:
        if name in old:
            pairs = [
                (field, getattr(old[name], field), getattr(new[name], field))
                for field in FunctionSettings.fields
            ]
            found += [f"function {name}: {field} {a} → {b}" for field, a, b in pairs if a != b]
    return found + [f"function {name}: removed" for name in old if name not in new]


def is_final(status: str) -> bool:
    """Whether an invocation never leaves this status."""
    return status in FINAL_STATUSES
