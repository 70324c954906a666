"""Invocations as callers see them, and what can be done with them: start, read, wait, map, follow, cancel, list.

Everything is written once, as steps (see ``client``); ``function`` drives them, blocking or asynchronously. A function
is named by a ``Target``; its arguments come as text.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from . import codec, errors, wire
from .client import Emit, path_of
from .limits import MAX_START_BATCH, WAIT_S
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Deque, Dict, List, Optional, Tuple, Union

    from .client import Client, Steps

MAX_ASKED_FOR = 250
"""Invocations that one waiting request names: the results come in order, so the oldest are those to wait for."""
MAX_BATCH_CHARACTERS = 4 * 1024 * 1024
FILL_S = 0.05
"""How long items are collected for a batch before what there is gets started."""


class InvocationStatus(str, Enum):
    """The states of an invocation; the last four are final."""

    PENDING = wire.PENDING
    RUNNING = wire.RUNNING
    CANCELLING = wire.CANCELLING
    SUCCEEDED = wire.SUCCEEDED
    FAILED = wire.FAILED
    CANCELLED = wire.CANCELLED
    TIMED_OUT = wire.TIMED_OUT

    def __str__(self) -> str:
        return self.value

    @property
    def is_final(self) -> bool:
        """Whether an invocation in this state has ended."""
        return self.value in wire.FINAL_STATUSES


@dataclass(frozen=True)
class Invocation:
    """One invocation as it was when it was asked for. Times are aware (UTC).

    ``error`` is ``ValueError: bad bound`` for an exception in the function, or how its worker ended; None where nothing
    failed. ``terminated`` says that it has ended and nothing of its worker is left. ``pending_reason`` says why a PENDING one
    does not run yet, ``next_try_at`` when it is due, where it waits for a time: a delay, a retry, another try to make its worker.
    """

    invocation_id: str
    project: str
    function: str
    version_id: str
    status: InvocationStatus
    error: Optional[str]
    terminated: bool
    num_failed_attempts: int
    pending_reason: Optional[str]
    created_at: datetime
    started_at: Optional[datetime]
    finished_at: Optional[datetime]
    parent_id: Optional[str] = None
    error_type: str = ""
    """The exception's class, empty where it was none."""
    traceback: str = field(default="", repr=False)
    encoded_result: Optional[str] = field(default=None, repr=False)
    """The result as jsonpickle text."""
    next_try_at: Optional[datetime] = None

    @property
    def result(self) -> Any:
        """What the function returned, or the newest value that it has yielded; None where there is none yet.

        Decoded here, anew each time: raises DecodingError where this program lacks a class of it.
        """
        return None if self.encoded_result is None else codec.decode(self.encoded_result)


@dataclass(frozen=True)
class InvocationIdsList:
    """A page of ids, newest first; ``next_offset`` gets the next page, None on the last one."""

    invocation_ids: List[str]
    next_offset: Optional[str]


class Target(Record):
    """A function of a control plane. Without ``version_id`` it is the latest version's at each start."""

    project: str
    function: str
    version_id: Optional[str] = None
    parent_id: Optional[str] = None
    """The invocation on whose behalf others are started: cancelling it cancels them."""

    def __str__(self) -> str:
        return f"{self.project}/{self.function}"


class StartOptions(Record):
    """What ``with_options`` sets for ``start``."""

    idempotency_key: Optional[str] = None
    delay_s: float = 0.0


class MapOptions(Record):
    """How ``map`` hands out its results; ``window`` is the number of invocations in flight or not yet handed out."""

    ordered: bool = True
    return_exceptions: bool = False
    window: int = 1000


def start(
    client: Client, target: Target, inputs: List[str], options: StartOptions
) -> Steps[List[str]]:
    """Starts an invocation for each input, all or none; returns their ids. Safe to be sent twice."""
    path, request = _start_request(target, inputs, options)
    answer = yield from client.exchange(wire.StartAnswer, "POST", path, request)
    return answer.invocation_ids


def _start_request(
    target: Target, inputs: List[str], options: StartOptions, wait_s: float = 0.0
) -> Tuple[str, wire.StartRequest]:
    path = path_of("projects", target.project, "functions", target.function, "invocations")
    request = wire.StartRequest(
        inputs=inputs,
        request_key=os.urandom(16).hex(),
        version_id=target.version_id,
        idempotency_key=options.idempotency_key,
        delay_s=options.delay_s,
        parent_id=target.parent_id,
        wait_s=wait_s,
    )
    return path, request


def call(client: Client, target: Target, text: str, options: StartOptions) -> Steps[Any]:
    """Starts an invocation, waits for its end and returns the result, or raises what the end was."""
    wait_s = 0.0 if options.delay_s else WAIT_S
    path, request = _start_request(target, [text], options, wait_s)
    answer = yield from client.exchange(wire.StartAnswer, "POST", path, request, wait_s=wait_s)
    if answer.ended:
        return _result(answer.ended[0])
    invocation_id = answer.invocation_ids[0]
    found = yield from result(client, target, invocation_id, is_own=True)
    return found


def get(client: Client, target: Target, invocation_id: str) -> Steps[Invocation]:
    """The invocation now. Raises InvocationNotFound, also for one of another function."""
    info = yield from _read(client, target, invocation_id)
    return _invocation(info)


def cancel(client: Client, target: Target, invocation_id: str) -> Steps[None]:
    """Asks for cancellation; one that has ended is left as it is."""
    yield from _read(client, target, invocation_id)
    path = path_of("invocations", invocation_id, "cancel")
    yield from client.exchange(wire.InvocationInfo, "POST", path)


def result(
    client: Client,
    target: Target,
    invocation_id: str,
    *,
    timeout_s: Optional[float] = None,
    is_own: bool = False,
) -> Steps[Any]:
    """Waits for the end and returns the result, or raises what the end was.

    ``is_own`` says that ``target`` started it just now, which saves a request. Raises the built-in TimeoutError after
    ``timeout_s``; the invocation goes on.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended: List[wire.InvocationInfo] = []
    if not is_own:
        info = yield from _read(client, target, invocation_id)
        ended = [info] if info.status in wire.FINAL_STATUSES else []
    while not ended:
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            message = f"{invocation_id} has not ended within {timeout_s:g} s; it goes on."
            raise TimeoutError(message)
        try:
            ended = yield from _wait(client, [invocation_id], left_s, retry_s=left_s)
        except errors.ControlPlaneUnreachable as error:
            if deadline is None or time.monotonic() < deadline:
                raise
            message = f"{invocation_id} was not seen to end within {timeout_s:g} s: {error.message}"
            raise TimeoutError(message) from error
    return _result(ended[0])


def values(
    client: Client, target: Target, invocation_id: str, *, after: int, with_numbers: bool
) -> Steps[None]:
    """Emits the values that it yields after number ``after``, until it ends; with their numbers if so asked.

    Warns where older values are no longer kept.
    """
    yield from _read(client, target, invocation_id)
    while True:
        path = path_of("invocations", invocation_id, "values", after=after, wait_s=WAIT_S)
        answer = yield from client.exchange(wire.ValuesAnswer, "GET", path, wait_s=WAIT_S)
        if answer.left_out:
            message = f"{invocation_id}: {answer.left_out} older values are no longer kept"
            warnings.warn(message, stacklevel=2)
        for item in answer.values:
            after = item.number
            value = codec.decode(item.value)
            yield Emit((item.number, value) if with_numbers else value)
        if answer.ended:
            return


def page(
    client: Client,
    target: Target,
    *,
    status: Optional[Union[InvocationStatus, str]],
    offset: Optional[str],
) -> Steps[InvocationIdsList]:
    """A page of 50 ids of the function's invocations, newest first."""
    if status is not None and status not in wire.STATUSES:
        message = f"{status!r} is no status."
        raise errors.InputError(message, f"It is one of {', '.join(wire.STATUSES)}.")
    path = path_of(
        "invocations",
        project=target.project,
        function=target.function,
        version_id=target.version_id,
        status=None if status is None else str(InvocationStatus(status)),
        offset=offset,
    )
    answer = yield from client.exchange(wire.InvocationList, "GET", path)
    ids = [item.invocation_id for item in answer.invocations]
    return InvocationIdsList(ids, answer.next_offset)


def map_results(
    client: Client, target: Target, inputs: Iterator[str], *, delay_s: float, options: MapOptions
) -> Steps[None]:
    """Emits the result of one invocation for each input.

    Inputs are taken, and invocations started, in batches, so that at most ``options.window`` of them are started whose results
    are not handed out yet. What an invocation raises is raised, and ends the iteration, or emitted. Others that are in flight
    then go on.
    """
    window = _Window(options)
    is_exhausted = False
    while True:
        if not is_exhausted and window.has_room():
            batch, is_exhausted = _take(inputs, window.room())
            if batch:
                ids = yield from start(client, target, batch, StartOptions(delay_s=delay_s))
                window.add(ids)
        if window.is_empty():
            if is_exhausted:
                return
            continue
        if window.waits_for_more():
            is_full = is_exhausted or not window.has_room()
            asked = window.asked()
            ended = yield from _wait(client, asked, None if is_full else 0.0)
            window.record(ended)
        while window.has_next():
            yield Emit(_outcome(window.pop(), options))


class _Window:
    """The invocations of a map that are started and not handed out: which have ended, and which comes next."""

    def __init__(self, options: MapOptions) -> None:
        self._options = options
        self._queue: Deque[str] = deque()
        """In the order of handing out: all of them, or, unordered, those that have ended."""
        self._running: Dict[str, None] = {}
        self._ended: Dict[str, wire.InvocationInfo] = {}

    def room(self) -> int:
        return self._options.window - len(self._running) - len(self._ended)

    def has_room(self) -> bool:
        """Whether a batch is worth a request."""
        return self.room() >= max(1, self._options.window // 4)

    def is_empty(self) -> bool:
        return not self._running and not self._ended

    def add(self, ids: List[str]) -> None:
        self._running.update(dict.fromkeys(ids))
        if self._options.ordered:
            self._queue.extend(ids)

    def waits_for_more(self) -> bool:
        return bool(self._running) and not self.has_next()

    def asked(self) -> List[str]:
        ids = list(self._running)
        return ids[:MAX_ASKED_FOR] if self._options.ordered else ids

    def record(self, ended: List[wire.InvocationInfo]) -> None:
        for info in ended:
            del self._running[info.invocation_id]
            self._ended[info.invocation_id] = info
            if not self._options.ordered:
                self._queue.append(info.invocation_id)

    def has_next(self) -> bool:
        return bool(self._queue) and self._queue[0] in self._ended

    def pop(self) -> wire.InvocationInfo:
        return self._ended.pop(self._queue.popleft())


def _take(inputs: Iterator[str], room: int) -> Tuple[List[str], bool]:
    """A batch, and whether ``inputs`` are exhausted. A slow iterable does not hold up what it has given already."""
    batch: List[str] = []
    size, give_up_at = 0, time.monotonic() + FILL_S
    for text in inputs:
        batch.append(text)
        size += len(text)
        is_full = len(batch) >= min(room, MAX_START_BATCH) or size >= MAX_BATCH_CHARACTERS
        if is_full or time.monotonic() > give_up_at:
            return batch, False
    return batch, True


def _read(client: Client, target: Target, invocation_id: str) -> Steps[wire.InvocationInfo]:
    path = path_of("invocations", _checked(invocation_id))
    info = yield from client.exchange(wire.InvocationInfo, "GET", path)
    if (info.project, info.function) != (target.project, target.function):
        message = (
            f"{invocation_id} is an invocation of {info.project}/{info.function}, not of {target}."
        )
        raise errors.InvocationNotFound(message, "Ask the function that it is of.")
    return info


def _wait(
    client: Client, ids: List[str], wait_s: Optional[float], *, retry_s: Optional[float] = None
) -> Steps[List[wire.InvocationInfo]]:
    """Those that have ended, as soon as one has; none after ``wait_s``, and after 25 s at the latest."""
    held_s = WAIT_S if wait_s is None else min(wait_s, WAIT_S)
    answer = yield from client.exchange(
        wire.WaitAnswer,
        "POST",
        path_of("invocations", "wait"),
        wire.WaitRequest(ids, wait_s=held_s),
        wait_s=held_s,
        retry_s=client.retry_s if retry_s is None else min(retry_s, client.retry_s),
    )
    return answer.ended


def _checked(invocation_id: str) -> str:
    if not isinstance(invocation_id, str) or not invocation_id:
        message = f"{invocation_id!r} is no invocation id."
        raise errors.InputError(message, "Pass what `start` returned, e.g. 'inv-…'.")
    return invocation_id


def _outcome(info: wire.InvocationInfo, options: MapOptions) -> Any:
    try:
        return _result(info)
    except errors.MultinodeError as error:
        if options.return_exceptions:
            return error
        raise


def _result(info: wire.InvocationInfo) -> Any:
    """The decoded result of an invocation that has ended, or its end as an exception."""
    if info.status == wire.SUCCEEDED:
        return None if info.result is None else codec.decode(info.result)
    name, error = info.invocation_id, info.error
    said = f": {error.message}".rstrip(".") if error else ""
    hint = f"`multinode describe {name}` shows its attempts, `multinode logs {name}` its output."
    end = {wire.CANCELLED: "was cancelled", wire.TIMED_OUT: "timed out"}.get(info.status, "failed")
    message = f"{info.project}/{info.function} ({name}) {end}{said}."
    if info.status == wire.CANCELLED:
        raise errors.RemoteInvocationCancelledError(message, hint, invocation_id=name)
    if info.status == wire.TIMED_OUT:
        raise errors.RemoteInvocationTimedOutError(message, hint, invocation_id=name)
    raise errors.InvocationFailedError(
        message,
        hint,
        invocation_id=name,
        error_type=error.type if error else "",
        traceback=error.traceback if error else "",
    )


def _invocation(info: wire.InvocationInfo) -> Invocation:
    return Invocation(
        invocation_id=info.invocation_id,
        project=info.project,
        function=info.function,
        version_id=info.version_id,
        status=InvocationStatus(info.status),
        error=info.error.message if info.error else None,
        terminated=info.terminated,
        num_failed_attempts=info.num_failed_attempts,
        pending_reason=info.pending_reason,
        created_at=_moment(info.created_at),
        started_at=_moment(info.started_at) if info.started_at else None,
        finished_at=_moment(info.finished_at) if info.finished_at else None,
        parent_id=info.parent_id,
        error_type=info.error.type if info.error else "",
        traceback=info.error.traceback if info.error else "",
        encoded_result=info.result,
        next_try_at=_moment(info.next_try_at) if info.next_try_at else None,
    )


def _moment(text: str) -> datetime:
    """A time of the wire, aware. ``Z`` is read by Python 3.11 and later only."""
    return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
