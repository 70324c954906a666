"""Following one invocation: its status, values and logs as they come, told on stderr.

Three threads each hold a request open and put what they hear into one queue; the main thread alone prints, and so is
the one that Ctrl-C reaches, between two lines.
"""

from __future__ import annotations

import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from multinode.client import Client, path_of
from multinode.errors import MultinodeError
from multinode.limits import WAIT_S
from multinode.wire import (
    FINAL_STATUSES,
    PENDING,
    InvocationInfo,
    LogRecord,
    Value,
    ValuesAnswer,
    loads,
)
from multinode_cli.commands.shown import value_text
from multinode_cli.console import ChangingLine, Console
from multinode_cli.errors import Interrupted

PENDING_WAIT_S = 5.0
"""How long one request waits while it is pending: the reason may change although the invocation does not."""
TICK_S = 1.0
"""How often what is shown counts down."""
LOGS_AFTER_END_S = 5.0
"""How long the last lines of output are waited for once the invocation has ended."""


@dataclass(frozen=True)
class _Finished:
    """One of the three threads has nothing more to tell; ``error`` says why, if not because of the end."""

    source: str
    error: MultinodeError | None = None


_Event = InvocationInfo | Value | LogRecord | _Finished


class Follower:
    """Follows one invocation until it ends."""

    def __init__(self, client: Client, invocation_id: str, *, has_logs: bool) -> None:
        self._client = client
        self._id = invocation_id
        self._events: queue.Queue[_Event] = queue.Queue()
        self._open = {"status", "values", *({"logs"} if has_logs else ())}
        self._is_started = False

    def events(self) -> Iterator[_Event | None]:
        """What happens, in the order in which it was heard; the last status is the final one. None where a second goes by.

        Raises the error that kept the status from being known. After a KeyboardInterrupt it can be called again.
        """
        self._start()
        ended_at: float | None = None
        while self._open and not (ended_at and time.monotonic() - ended_at > LOGS_AFTER_END_S):
            try:
                event = self._events.get(timeout=TICK_S if ended_at is None else LOGS_AFTER_END_S)
            except queue.Empty:
                if ended_at is not None:
                    return
                yield None
                continue
            if isinstance(event, _Finished):
                self._open.discard(event.source)
                if event.error is not None and event.source == "status":
                    raise event.error
                continue
            if isinstance(event, InvocationInfo) and event.status in FINAL_STATUSES:
                ended_at = time.monotonic()
            yield event

    def _start(self) -> None:
        if self._is_started:
            return
        self._is_started = True
        listeners: dict[str, Callable[[], None]] = {
            "status": self._hear_status,
            "values": self._hear_values,
            "logs": self._hear_logs,
        }
        for source in sorted(self._open):
            threading.Thread(
                target=self._hear, args=(source, listeners[source]), name=source, daemon=True
            ).start()

    def _hear(self, source: str, listen: Callable[[], None]) -> None:
        try:
            listen()
            self._events.put(_Finished(source))
        except MultinodeError as error:
            self._events.put(_Finished(source, error))

    def _hear_status(self) -> None:
        path = path_of("invocations", self._id)
        while True:
            invocation = self._client.call(InvocationInfo, "GET", path, wait_s=WAIT_S)
            self._events.put(invocation)
            if invocation.status in FINAL_STATUSES:
                return
            wait_s = PENDING_WAIT_S if invocation.status == PENDING else WAIT_S
            path = path_of("invocations", self._id, wait_s=wait_s, revision=invocation.revision)

    def _hear_values(self) -> None:
        seen = 0
        while True:
            path = path_of("invocations", self._id, "values", after=seen, wait_s=WAIT_S)
            answer = self._client.call(ValuesAnswer, "GET", path, wait_s=WAIT_S)
            for value in answer.values:
                self._events.put(value)
                seen = value.number
            if answer.ended:
                return

    def _hear_logs(self) -> None:
        path = path_of("invocations", self._id, "logs", follow=True)
        for line in self._client.stream("GET", path):
            self._events.put(loads(LogRecord, line))


class LineJoiner:
    """Makes whole lines of pieces of output, apart for each stream and attempt."""

    def __init__(self) -> None:
        self._rest: dict[tuple[str, int], str] = {}

    def take(self, record: LogRecord) -> list[str]:
        """The lines that ``record`` completes; a record of our own is always whole."""
        key = (record.stream, record.attempt)
        text = self._rest.pop(key, "") + record.text
        *lines, rest = text.split("\n")
        if rest and record.stream == "system":
            return [*lines, rest]
        if rest:
            self._rest[key] = rest
        return lines

    def flush(self) -> list[str]:
        """What is left without an end of line."""
        rest, self._rest = list(self._rest.values()), {}
        return rest


def follow(
    console: Console, client: Client, invocation_id: str, *, has_logs: bool
) -> tuple[InvocationInfo, bool]:
    """Tell what happens until the invocation ends; returns it as it ended, and whether Ctrl-C made it end.

    Ctrl-C asks the control plane to cancel, and goes on; a second one raises Interrupted.
    """
    follower = Follower(client, invocation_id, has_logs=has_logs)
    teller = _Teller(console)
    with console.changing_line(invocation_id) as line:
        with suppress(KeyboardInterrupt):
            return teller.tell(follower.events(), line), False
        try:
            console.note(f"Cancelling {invocation_id}; Ctrl-C again leaves it to itself.")
            client.call(InvocationInfo, "POST", path_of("invocations", invocation_id, "cancel"))
            ended = teller.tell(follower.events(), line)
        except KeyboardInterrupt as error:
            message = f"Detached: {invocation_id} goes on ending. `multinode describe {invocation_id}` shows it."
            raise Interrupted(message) from error
    return ended, True


class _Teller:
    """Prints events; remembers what was told, so that nothing is told twice."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._joiner = LineJoiner()
        self._newest_value = 0
        self._told = ""
        self._text = ""
        self._heard_at = 0.0

    def tell(self, events: Iterator[_Event | None], line: ChangingLine) -> InvocationInfo:
        last: InvocationInfo | None = None
        for event in events:
            if event is None:
                line.say(counted_down(self._text, time.monotonic() - self._heard_at))
            elif isinstance(event, InvocationInfo):
                last = event
                self._tell_status(event, line)
            elif isinstance(event, Value):
                if event.number > self._newest_value:
                    self._newest_value = event.number
                    self._console.note(f"value {event.number}: {value_text(event.value)}")
            elif isinstance(event, LogRecord):
                for text in self._joiner.take(event):
                    self._console.note(f"| {text}", "dim")
        self.conclude()
        assert (
            last is not None
        )  # the status thread's first word, or its error, comes before the end
        return last

    def conclude(self) -> None:
        for text in self._joiner.flush():
            self._console.note(f"| {text}", "dim")

    def _tell_status(self, invocation: InvocationInfo, line: ChangingLine) -> None:
        if invocation.status in FINAL_STATUSES:
            return
        reason = f": {invocation.pending_reason}" if invocation.pending_reason else ""
        away = " (its worker is unreachable)" if invocation.unreachable else ""
        text = f"{invocation.status}{reason}{away}"
        self._text, self._heard_at = f"{invocation.invocation_id}  {text}", time.monotonic()
        line.say(self._text)
        what = counted_down(text, math.inf)
        if what != self._told and not line.is_visible and text != PENDING:
            self._console.note(text)
        self._told = what


def counted_down(text: str, elapsed_s: float) -> str:
    """The text of a status as it is so many seconds after it was heard: ``retry in 8 s`` counts down to 0."""
    return re.sub(
        r"\bin (\d+) s\b", lambda found: f"in {max(0.0, int(found[1]) - elapsed_s):.0f} s", text
    )
