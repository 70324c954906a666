"""The threads that talk to the control plane: one sends (exchange, claim, values, end), one waits for orders.

They know nothing of the child. What they learn they post as events, which the supervisor's loop takes from ``Mailbox``. Both
go on trying for a day while the control plane is away; only a refusal ends them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from .. import errors, limits, wire
from ..client import Client, jitter
from ..records import Record
from .launch import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, List, Optional, Type, TypeVar, Union

    T = TypeVar("T")
    Event = Union["Assigned", "Claimed", "Ordered", "Sent", "Refused"]

PATIENCE_S = 24 * 3600.0
LONGEST_PAUSE_S = 30.0
RENEWAL_S = 10.0
"""Pause between watches once the order to cancel is known: they only renew the lease then."""


class Assigned(Record):
    """The claim code was exchanged, and the code lies in ``code_dir``."""

    assignment: wire.Assignment
    code_dir: str


class Claimed(Record):
    """The claim is committed."""

    order: Optional[str]


class Ordered(Record):
    """The control plane wants the invocation to be cancelled."""


class Sent(Record):
    """What waited was accepted; ``is_end`` when the end was among it."""

    is_end: bool


class Refused(Record):
    """This worker has nothing more to say to the control plane, or was not heard for a day."""

    reason: str
    is_watch: bool = False


class Mailbox:
    """Events from threads to the loop, which it wakes by a byte into ``wake_fd``."""

    def __init__(self, wake_fd: int) -> None:
        self._wake_fd = wake_fd
        self._events: Deque[Event] = deque()

    def post(self, event: Event) -> None:
        """Adds an event; from any thread."""
        self._events.append(event)
        try:
            os.write(self._wake_fd, b"\0")
        except BlockingIOError:  # full of earlier bells
            return

    def take(self) -> List[Event]:
        """All events since the last time, oldest first."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken


class Reports:
    """The sending thread. It exchanges the claim code as soon as it is told its launch; then it sends what it is given, in that order.

    One request carries all values that wait, and the end with them if it is known.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        """Starts the thread, which waits for `begin`. Not before the child is forked."""
        self._mailbox = mailbox
        self._launch: Optional[Launch] = None
        self._bundle_dir = ""
        self._changed = threading.Condition()
        self._claim: Optional[wire.Claim] = None
        self._values: Deque[wire.Value] = deque()
        self._end: Optional[wire.ExecutionEnd] = None
        self._described: Optional[wire.Described] = None
        self._unsent_values = 0
        self._unsent_bytes = 0
        threading.Thread(target=self._live, name="reports", daemon=True).start()

    def begin(self, launch: Launch, *, bundle_dir: str) -> None:
        """Exchanges the claim code; answered by ``Assigned``. A bundle that has to be fetched is put into ``bundle_dir``."""
        with self._changed:
            self._launch, self._bundle_dir = launch, bundle_dir
            self._changed.notify()

    @property
    def is_full(self) -> bool:
        """Whether the generator has to wait: so much is unsent."""
        return (
            self._unsent_values >= limits.MAX_UNSENT_VALUES
            or self._unsent_bytes >= limits.MAX_UNSENT_BYTES
        )

    def claim(self, claim: wire.Claim) -> None:
        """Claims the execution; answered by ``Claimed``."""
        with self._changed:
            self._claim = claim
            self._changed.notify()

    def add_value(self, value: wire.Value) -> None:
        """Sends a yielded value."""
        with self._changed:
            self._values.append(value)
            self._unsent_values += 1
            self._unsent_bytes += len(value.value)
            self._changed.notify()

    def finish(self, end: wire.ExecutionEnd) -> None:
        """Sends the end, after all values; answered by ``Sent(is_end=True)``."""
        with self._changed:
            self._end = end
            self._changed.notify()

    def describe(self, described: wire.Described) -> None:
        """Sends what a describe found; answered by ``Sent(is_end=True)``."""
        with self._changed:
            self._described = described
            self._changed.notify()

    # --- in the thread ---

    def _live(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._launch is not None)
        launch = self._launch
        assert launch is not None
        try:
            assignment = exchange(launch)
            client = Client(launch.api_url, assignment.token, retry_s=PATIENCE_S)
            code_dir = launch.code_dir or self._fetch_bundle(client, assignment)
            self._mailbox.post(Assigned(assignment, code_dir))
            while not self._send_next(client, assignment):
                pass
        except errors.MultinodeError as error:
            self._mailbox.post(Refused(str(error)))
        except Exception as error:  # a fault of ours must not leave a worker that waits for ever
            self._mailbox.post(Refused(f"{type(error).__name__}: {error}"))

    def _fetch_bundle(self, client: Client, assignment: wire.Assignment) -> str:
        from pathlib import Path  # with tarfile, only where the runner has not unpacked it

        from .bundle import extract

        path = f"/v1/bundles/{assignment.bundle_digest}"
        archive = Path(self._bundle_dir, "bundle.tar.gz")
        archive.write_bytes(persist(lambda: client.call(bytes, "GET", path)))
        code_dir = Path(self._bundle_dir, "code")
        extract(archive, code_dir)
        archive.unlink()
        return str(code_dir)

    def _send_next(self, client: Client, assignment: wire.Assignment) -> bool:
        """Waits for something to send and sends it; whether it was the last."""
        with self._changed:
            self._changed.wait_for(self._has_something)
            claim, self._claim = self._claim, None
            described, end = self._described, self._end
            values = [] if claim else list(self._values)
            if not claim:
                self._values.clear()
        if claim:
            order = self._post(client, wire.Order, "claim", claim)
            self._mailbox.post(Claimed(order.order))
            return False
        if described:
            self._post(client, wire.Empty, "described", described)
        else:
            report = wire.Report(assignment.execution_id, values or None, end)
            self._note_sent(values, self._post(client, wire.Order, "report", report))
        is_end = bool(described or end)
        self._mailbox.post(Sent(is_end))
        return is_end

    def _has_something(self) -> bool:
        return bool(self._claim or self._values or self._end or self._described)

    def _note_sent(self, values: List[wire.Value], order: wire.Order) -> None:
        with self._changed:
            self._unsent_values -= len(values)
            self._unsent_bytes -= sum(len(value.value) for value in values)
        if order.order == "cancel":
            self._mailbox.post(Ordered())

    def _post(self, client: Client, answer_cls: Type[T], name: str, body: object) -> T:
        return persist(lambda: client.call(answer_cls, "POST", f"/v1/worker/{name}", body))


class Watch:
    """The thread that holds one request open for orders; each request renews the lease."""

    def __init__(self, api_url: str, assignment: wire.Assignment, mailbox: Mailbox) -> None:
        self._client = Client(api_url, assignment.token, retry_s=PATIENCE_S)
        self._watch = wire.Watch(assignment.execution_id, limits.WAIT_S)
        self._mailbox = mailbox

    def start(self) -> None:
        """Starts the thread."""
        threading.Thread(target=self._live, name="watch", daemon=True).start()

    def _live(self) -> None:
        try:
            while True:
                order = persist(self._ask)
                if order.order == "cancel":
                    self._mailbox.post(Ordered())
                    time.sleep(RENEWAL_S)
        except errors.MultinodeError as error:
            self._mailbox.post(Refused(str(error), is_watch=True))

    def _ask(self) -> wire.Order:
        path = "/v1/worker/watch"
        return self._client.call(wire.Order, "POST", path, self._watch, wait_s=self._watch.wait_s)


def exchange(launch: Launch) -> wire.Assignment:
    """What the claim code is worth; with a nonce of the launch it may be asked for again."""
    client = Client(launch.api_url, launch.claim_code, retry_s=PATIENCE_S)
    nonce = launch.nonce or os.urandom(16).hex()
    request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, nonce)
    return persist(lambda: client.call(wire.Assignment, "POST", "/v1/worker/exchange", request))


def persist(ask: Callable[[], T]) -> T:
    """What ``ask`` returns, asked again for a day while the control plane fails; a refusal is raised at once."""
    given_up_at = time.monotonic() + PATIENCE_S
    pause_s = 1.0
    while True:
        try:
            return ask()
        except errors.ControlPlaneError:
            if time.monotonic() > given_up_at:
                raise
        time.sleep(pause_s * jitter())
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
