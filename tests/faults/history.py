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
class Call:
    """What is to become of one call: ``label`` is its first argument and names it outside.

    ``starts``: how many executions start, as (least, most). ``is_alone``: its function has ``max_concurrency=1``.
    """

    label: str
    status: str
    result: Any = None
    starts: tuple[int, int] = (1, 1)
    is_alone: bool = False


@dataclass(frozen=True)
class Started:
    """``start`` returned this id for the call."""

    call: Call
    invocation_id: str


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


@dataclass(frozen=True)
class Effect:
    """Something that an execution did outside. ``what``: ``start``, ``end``, …"""

    label: str
    what: str
    at_ns: int
    text: str = ""


@dataclass
class History:
    """``told``: what each client was told, in order."""

    told: Mapping[str, Sequence[Told]]
    stored: Mapping[str, Stored]
    effects: Mapping[str, Sequence[Effect]] = field(default_factory=dict)

    def of(self, kind: type) -> Iterator[Any]:
        """Everything of this kind that anybody was told."""
        return (item for items in self.told.values() for item in items if isinstance(item, kind))


def problems(history: History) -> list[str]:
    """Everything that is wrong, in words; empty where all is right."""
    checks = (_ids, _ends, _told_ends, _order, _values, _effects, _alone)
    return [problem for check in checks for problem in check(history)]


def _calls(history: History) -> dict[str, Call]:
    """By invocation id."""
    return {item.invocation_id: item.call for item in history.of(Started)}


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
    """Each has ended, its worker is gone, and it ended as its code did."""
    calls = _calls(history)
    for invocation_id, stored in history.stored.items():
        name = _name(calls, invocation_id)
        if stored.status not in FINAL:
            yield f"{name}: is {stored.status} for ever"
        elif not stored.terminated:
            yield f"{name}: has ended, and its worker is not gone"
        call = calls.get(invocation_id)
        if call is not None and stored.status != call.status:
            yield f"{name}: should be {call.status}, is {stored.status}"
        elif call is not None and stored.status == "SUCCEEDED" and stored.result != call.result:
            yield f"{name}: its result should be {call.result!r}, is {stored.result!r}"


def _told_ends(history: History) -> Iterator[str]:
    """An end that was told is the one that is stored."""
    calls = _calls(history)
    for seen in history.of(Seen):
        stored = history.stored.get(seen.invocation_id)
        if stored is None or seen.status not in FINAL:
            continue
        name = _name(calls, seen.invocation_id)
        if seen.status != stored.status:
            yield f"{name}: was told to be {seen.status}, is {stored.status}"
        elif seen.status == "SUCCEEDED" and seen.result != stored.result:
            yield f"{name}: its result was told as {seen.result!r}, is {stored.result!r}"
        if seen.finished_at not in (None, stored.finished_at):
            yield f"{name}: ended twice, at {seen.finished_at} and {stored.finished_at}"


def _order(history: History) -> Iterator[str]:
    """Nobody saw one leave an end, or be PENDING again that has no retries."""
    calls = _calls(history)
    for client, items in history.told.items():
        statuses = defaultdict(list)
        for item in items:
            if isinstance(item, Seen):
                statuses[item.invocation_id].append(item.status)
        for invocation_id, seen in statuses.items():
            name = _name(calls, invocation_id)
            for before, after in pairwise(seen):
                if before in FINAL and after != before:
                    yield f"{name}: {client} saw it {before}, then {after}"
                once = invocation_id in calls and calls[invocation_id].starts[1] <= 1
                if once and before in ("RUNNING", "CANCELLING") and after == "PENDING":
                    yield f"{name}: {client} saw it {before}, then PENDING, and it has no retries"


def _values(history: History) -> Iterator[str]:
    """Values are numbered from 1 without a gap, and those that were told are those that are stored."""
    calls = _calls(history)
    for invocation_id, stored in history.stored.items():
        yield from _gaps(f"{_name(calls, invocation_id)}, stored", stored.values)
    for item in history.of(Yielded):
        name = f"{_name(calls, item.invocation_id)}, told"
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
    """Executions started as often as they may, and as often as the store says."""
    for invocation_id, call in _calls(history).items():
        effects = history.effects.get(call.label, ())
        starts = sum(effect.what == "start" for effect in effects)
        ends = sum(effect.what == "end" for effect in effects)
        least, most = call.starts
        name = f"{invocation_id} ({call.label})"
        if not least <= starts <= most:
            yield f"{name}: started {starts} times, which should be {least} to {most}"
        stored = history.stored.get(invocation_id)
        if stored is None:
            continue
        if starts > len(stored.attempts):
            yield f"{name}: started {starts} times, the store knows of {len(stored.attempts)}"
        if len(set(stored.attempts)) != len(stored.attempts):
            yield f"{name}: the store has an attempt twice: {stored.attempts}"
        if stored.status == "SUCCEEDED" and ends == 0:
            yield f"{name}: is SUCCEEDED, and its code has not come to its end"
        if ends > 1:
            yield f"{name}: came to its end {ends} times"


def _alone(history: History) -> Iterator[str]:
    """Executions of a function with ``max_concurrency=1`` did not overlap."""
    spans = []
    for call in {call.label: call for call in _calls(history).values() if call.is_alone}.values():
        at = {effect.what: effect.at_ns for effect in history.effects.get(call.label, ())}
        if "start" in at and "end" in at:
            spans.append((at["start"], at["end"], call.label))
    for (_, ended, first), (began, _, second) in pairwise(sorted(spans)):
        if began < ended:
            yield f"{first} and {second} ran at the same time, with max_concurrency=1"


def _name(calls: Mapping[str, Call], invocation_id: str) -> str:
    call = calls.get(invocation_id)
    return invocation_id if call is None else f"{invocation_id} ({call.label})"
