"""What clients were told, what the store says afterwards, and what executions did outside: `problems` says where they disagree.

Pure: it asks nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

FINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass(frozen=True)
class Terms:
    """What a function's settings promise of all its invocations."""

    max_concurrency: int = 10
    max_retries: int = 0
    cpu: float = 0.0


@dataclass(frozen=True)
class Call:
    """What is to become of one call whose workers nobody ends: ``label`` is its first argument and names it outside.

    ``starts``: how many executions start, as (least, most).
    """

    label: str
    status: str
    result: Any = None
    starts: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Started:
    """``start`` of the function returned this id for the call."""

    call: Call
    invocation_id: str
    function: str = ""


@dataclass(frozen=True)
class Seen:
    """``get`` or ``await_result`` told this; each client's in its order. ``finished_at`` is None where it was not told."""

    invocation_id: str
    status: str
    result: Any = None
    finished_at: str | None = None


@dataclass(frozen=True)
class Yielded:
    """``progress`` gave these (number, value), from the first one on; ``is_whole``: it ended by itself."""

    invocation_id: str
    values: tuple[tuple[int, Any], ...]
    is_whole: bool = True


Told = Started | Seen | Yielded


@dataclass(frozen=True)
class Stored:
    """What the store says of an invocation when all is over."""

    status: str
    result: Any = None
    finished_at: str | None = None
    terminated: bool = True
    values: tuple[tuple[int, Any], ...] = ()
    attempts: tuple[int, ...] = (1,)
    """Of its executions that started."""
    losses: tuple[str, ...] = ()
    """Of those that ended without their code's doing, how: the worker was lost, or its process killed."""


@dataclass(frozen=True)
class Effect:
    """Something that an execution did outside. ``what``: ``start``, ``end``, …"""

    label: str
    what: str
    at_ns: int
    text: str = ""


@dataclass(frozen=True)
class Queue:
    """What the store counts of a function: workers that hold a slot, and invocations that are ready."""

    workers: int
    ready: int


@dataclass(frozen=True)
class History:
    """``told``: what each client was told, in order.

    ``ended_workers``: how many workers the faults may have ended; None: any number. ``left``: what is there outside of workers,
    in words. ``cpu``: the machine's room.
    """

    told: Mapping[str, Sequence[Told]]
    stored: Mapping[str, Stored]
    effects: Mapping[str, Sequence[Effect]] = field(default_factory=dict)
    terms: Mapping[str, Terms] = field(default_factory=dict)
    cpu: float | None = None
    queues: Mapping[str, Queue] = field(default_factory=dict)
    living_workers: Sequence[str] = ()
    left: Sequence[str] = ()
    ended_workers: int | None = 0

    def of(self, kind: type) -> Iterator[Any]:
        """Everything of this kind that anybody was told."""
        return (item for items in self.told.values() for item in items if isinstance(item, kind))


def problems(history: History) -> list[str]:
    """Everything that is wrong, in words; empty where all is right."""
    checks = (
        _ids, _ends, _losses, _told_ends, _order, _values, _effects, _attempts, _at_once, _room, _queues, _left,
    )  # fmt: skip
    return [problem for check in checks for problem in check(history)]


def _started(history: History) -> dict[str, Started]:
    """By invocation id."""
    return {item.invocation_id: item for item in history.of(Started)}


def _ids(history: History) -> Iterator[str]:
    """Each id that was told is stored, each call has one, and there are no others."""
    ids_of = defaultdict(set)
    for item in history.of(Started):
        ids_of[item.call.label].add(item.invocation_id)
    for label, ids in ids_of.items():
        if len(ids) > 1:
            yield f"{label}: started as {len(ids)} invocations: {sorted(ids)}"
    told = set().union(*ids_of.values())
    yield from (f"{i}: its id was told, and it is not stored" for i in told - set(history.stored))
    yield from (f"{i}: stored, and nobody was told" for i in set(history.stored) - told)


def _ends(history: History) -> Iterator[str]:
    """Each has ended, its worker is gone, and it ended as its code did, or as one whose workers were lost."""
    started = _started(history)
    for invocation_id, stored in history.stored.items():
        name = _name(started, invocation_id)
        if stored.status not in FINAL:
            yield f"{name}: is {stored.status} for ever"
        elif not stored.terminated:
            yield f"{name}: has ended, and its worker is not gone"
        if (item := started.get(invocation_id)) is None or stored.status not in FINAL:
            continue
        call = item.call
        if stored.status != call.status and not _is_by_loss(history, item, stored):
            yield f"{name}: should be {call.status}, is {stored.status}"
        elif stored.status == "SUCCEEDED" and stored.result != call.result:
            yield f"{name}: its result should be {call.result!r}, is {stored.result!r}"


def _is_by_loss(history: History, item: Started, stored: Stored) -> bool:
    """Whether it failed because its last execution was lost, and was to be tried no more."""
    terms = history.terms.get(item.function, Terms())
    has_no_more = len(stored.attempts) == terms.max_retries + 1
    return stored.status == "FAILED" and bool(stored.losses) and has_no_more


def _losses(history: History) -> Iterator[str]:
    """No worker is lost, or killed, that no fault has ended."""
    started = _started(history)
    losses = [
        f"{_name(started, invocation_id)}: {loss}"
        for invocation_id, stored in history.stored.items()
        for loss in stored.losses
    ]
    ended = history.ended_workers
    if ended is not None and len(losses) > ended:
        said = "; ".join(losses)
        yield f"{len(losses)} executions were lost, and the faults have ended {ended} workers: {said}"


def _told_ends(history: History) -> Iterator[str]:
    """An end that was told is the one that is stored."""
    started = _started(history)
    for seen in history.of(Seen):
        stored = history.stored.get(seen.invocation_id)
        if stored is None or seen.status not in FINAL:
            continue
        name = _name(started, seen.invocation_id)
        if seen.status != stored.status:
            yield f"{name}: was told to be {seen.status}, is {stored.status}"
        elif seen.status == "SUCCEEDED" and seen.result != stored.result:
            yield f"{name}: its result was told as {seen.result!r}, is {stored.result!r}"
        if seen.finished_at not in (None, stored.finished_at):
            yield f"{name}: ended twice, at {seen.finished_at} and {stored.finished_at}"


def _order(history: History) -> Iterator[str]:
    """No client sees an ended invocation change, or be PENDING again that has no retries."""
    started = _started(history)
    for client, items in history.told.items():
        statuses = defaultdict(list)
        for item in items:
            if isinstance(item, Seen):
                statuses[item.invocation_id].append(item.status)
        for invocation_id, seen in statuses.items():
            name = _name(started, invocation_id)
            for before, after in pairwise(seen):
                if before in FINAL and after != before:
                    yield f"{name}: {client} saw it {before}, then {after}"
                once = invocation_id in started and _has_one_start(history, started[invocation_id])
                if once and before in ("RUNNING", "CANCELLING") and after == "PENDING":
                    yield f"{name}: {client} saw it {before}, then PENDING, and it has no retries"


def _has_one_start(history: History, item: Started) -> bool:
    terms = history.terms.get(item.function)
    return item.call.starts[1] <= 1 if terms is None else terms.max_retries == 0


def _values(history: History) -> Iterator[str]:
    """Values are numbered from 1 without a gap, and those that were told are those that are stored."""
    started = _started(history)
    for invocation_id, stored in history.stored.items():
        yield from _gaps(f"{_name(started, invocation_id)}, stored", stored.values)
    for item in history.of(Yielded):
        name = f"{_name(started, item.invocation_id)}, told"
        yield from _gaps(name, item.values)
        stored = history.stored.get(item.invocation_id)
        if stored is None:
            continue
        for number, value in item.values:
            if (number, value) not in stored.values:
                yield f"{name}: value {number}, {value!r}, is not stored"
        if item.is_whole and len(item.values) != len(stored.values):
            yield f"{name}: {len(item.values)} values of {len(stored.values)}"


def _gaps(name: str, values: Sequence[tuple[int, Any]]) -> Iterator[str]:
    numbers = [number for number, _ in values]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"{name}: the numbers of its values are {numbers}"


def _effects(history: History) -> Iterator[str]:
    """Executions started as often as their code has them start, and as often as the store says."""
    for invocation_id, item in _started(history).items():
        call, stored = item.call, history.stored.get(invocation_id)
        effects = history.effects.get(call.label, ())
        starts = sum(effect.what == "start" for effect in effects)
        ends = sum(effect.what == "end" for effect in effects)
        losses = 0 if stored is None else len(stored.losses)
        least, most = call.starts
        name = f"{invocation_id} ({call.label})"
        if not least - losses <= starts <= most + losses:
            yield f"{name}: started {starts} times, which should be {least} to {most}"
        if stored is None:
            continue
        if starts > len(stored.attempts):
            yield f"{name}: started {starts} times, the store knows of {len(stored.attempts)}"
        if len(set(stored.attempts)) != len(stored.attempts):
            yield f"{name}: the store has an attempt twice: {stored.attempts}"
        if stored.status == "SUCCEEDED" and ends == 0:
            yield f"{name}: is SUCCEEDED, and its code has not come to its end"
        if ends > 1 + losses:
            yield f"{name}: came to its end {ends} times"


def _attempts(history: History) -> Iterator[str]:
    """Whatever happens, a function starts ``max_retries`` + 1 times at most."""
    for item in history.of(Started):
        terms = history.terms.get(item.function)
        starts = [e for e in history.effects.get(item.call.label, ()) if e.what == "start"]
        if terms is not None and len(starts) > terms.max_retries + 1:
            yield f"{item.call.label}: started {len(starts)} times, with max_retries={terms.max_retries}"


@dataclass(frozen=True)
class _Span:
    """An execution, from its first effect to its last; one that was killed has lasted longer."""

    began: int
    ended: int
    label: str
    function: str


def _spans(history: History) -> list[_Span]:
    found = []
    for item in {item.call.label: item for item in history.of(Started)}.values():
        at: list[list[int]] = []
        for effect in history.effects.get(item.call.label, ()):
            if effect.what == "start" or not at:
                at.append([])
            at[-1].append(effect.at_ns)
        found += [_Span(each[0], each[-1], item.call.label, item.function) for each in at]
    return sorted(found, key=lambda span: span.began)


def _at_once(history: History) -> Iterator[str]:
    """Never more than ``max_concurrency`` executions of a function run at once."""
    spans = _spans(history)
    for function, terms in history.terms.items():
        running: list[_Span] = []
        for span in spans:
            if span.function != function:
                continue
            running = [each for each in running if each.ended > span.began] + [span]
            if len(running) > terms.max_concurrency:
                labels = " and ".join(each.label for each in running)
                yield f"{labels} ran at the same time, with max_concurrency={terms.max_concurrency}"


def _room(history: History) -> Iterator[str]:
    """What runs at once, of all functions, has room on the machine."""
    running: list[_Span] = []
    for span in _spans(history):
        running = [each for each in running if each.ended > span.began] + [span]
        used = sum(
            history.terms[each.function].cpu for each in running if each.function in history.terms
        )
        if history.cpu is not None and used > history.cpu + 1e-6:
            yield f"{span.label}: {used:g} cpu were used at once, and there are {history.cpu:g}"


def _queues(history: History) -> Iterator[str]:
    """When all is over no slot is taken, and nothing is counted as ready."""
    for function, queue in history.queues.items():
        if queue.workers:
            yield f"{function}: {queue.workers} slots are taken, and no worker is there"
        if queue.ready:
            yield f"{function}: {queue.ready} are counted as ready, and all have ended"


def _left(history: History) -> Iterator[str]:
    """No worker is left, in the store or outside of it."""
    yield from (f"{worker}: the store has it as living" for worker in history.living_workers)
    yield from (f"{what}: is left" for what in history.left)


def _name(started: Mapping[str, Started], invocation_id: str) -> str:
    item = started.get(invocation_id)
    return invocation_id if item is None else f"{invocation_id} ({item.call.label})"
