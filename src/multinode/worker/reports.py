"""The threads that talk to the control plane: one sends (exchange, claim, values, end) and asks for tasks, one waits for orders.

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
from .serving import give_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, Dict, List, Optional, Tuple, Type, TypeVar, Union

    T = TypeVar("T")
    Event = Union["Answered", "Assigned", "Claimed", "Ordered", "Sent", "Refused"]

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


class Answered(Record):
    """The question for tasks is answered: its ends are accepted, and what was handed is in `Reports.take_tasks`.

    ``leave``: there will be no more.
    """

    leave: bool


class Ordered(Record):
    """The control plane wants the invocation of this execution to be cancelled."""

    execution_id: str


class Sent(Record):
    """What waited was accepted; ``is_end`` when the worker's last words were among it."""

    is_end: bool


class Refused(Record):
    """This worker has nothing more to say to the control plane, or was not heard for a day."""

    reason: str
    watched: Optional[str] = None
    """The execution that was asked for where it is a watch that was refused."""


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

    One request carries all values of an execution that wait, and its end with them if it is known.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        """Starts the thread, which waits for `begin`. Not before the child is forked."""
        self._mailbox = mailbox
        self._launch: Optional[Launch] = None
        self._client: Optional[Client] = None
        self._bundle_dir = ""
        self._changed = threading.Condition()
        self._claim: Optional[wire.Claim] = None
        self._values: Dict[str, List[wire.Value]] = {}
        """By execution."""
        self._reports: List[wire.Report] = []
        self._request: Optional[wire.NextRequest] = None
        self._is_parting = False
        """Whether ``_reports`` are the last words."""
        self._tasks: List[wire.Task] = []
        """Handed, and not taken yet."""
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

    def add_value(self, execution_id: str, value: wire.Value) -> None:
        """Sends a yielded value."""
        with self._changed:
            self._values.setdefault(execution_id, []).append(value)
            self._unsent_values += 1
            self._unsent_bytes += len(value.value)
            self._changed.notify()

    def add(self, reports: List[wire.Report]) -> None:
        """Sends ends, each after the values of its execution; answered by ``Sent``."""
        with self._changed:
            self._reports += reports
            self._changed.notify()

    def finish(self, reports: List[wire.Report]) -> None:
        """Sends ends as the last words; answered by ``Sent(is_end=True)``. Tasks that come meanwhile are given back."""
        with self._changed:
            self._reports += reports
            self._part()
            self._changed.notify()

    def describe(self, described: wire.Described) -> None:
        """Sends what a describe found; answered by ``Sent(is_end=True)``."""
        with self._changed:
            self._described = described
            self._changed.notify()

    def ask(self, request: wire.NextRequest) -> None:
        """Asks for tasks, and tells ends by it; answered by ``Answered``. One that may wait is asked until there are some."""
        with self._changed:
            self._request = request
            self._changed.notify()

    def leave(self, request: wire.NextRequest, ends: List[wire.Report]) -> None:
        """Asks once more what ``ask`` is waiting for, gives back what it gets, and tells its ends again, and these: the last words.

        In a thread of its own: the other one waits, and nobody can know how far it has come. Answered by ``Sent(is_end=True)``.
        """
        with self._changed:
            self._part()
        thread = threading.Thread(
            target=self._leave, args=(request, ends), name="leave", daemon=True
        )
        thread.start()

    def take_tasks(self) -> List[wire.Task]:
        """The tasks that were handed; none where the last words are said: then they were given back."""
        with self._changed:
            tasks, self._tasks = self._tasks, []
            return tasks

    def _part(self) -> None:
        self._is_parting = True
        self._reports += give_back(self._tasks)
        self._tasks = []

    # --- in the threads ---

    def _live(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._launch is not None)
        launch = self._launch
        assert launch is not None
        try:
            assignment = exchange(launch)
            self._client = Client(launch.api_url, assignment.token, retry_s=PATIENCE_S)
            code_dir = launch.code_dir or self._fetch_bundle(self._client, assignment)
            self._mailbox.post(Assigned(assignment, code_dir))
            while not self._send_next():
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

    def _send_next(self) -> bool:
        """Waits for something to send and sends it; whether it was the last."""
        with self._changed:
            self._changed.wait_for(self._has_something)
            claim, self._claim = self._claim, None
            request, described = self._request, self._described
            if claim is None:
                self._request = None
                reports, request = self._take(request)
                is_parting = self._is_parting
        if claim is not None:
            order = self._post(wire.Order, "claim", claim)
            self._mailbox.post(Claimed(order.order))
            return False
        if described is not None:
            self._post(wire.Empty, "described", described)
            self._mailbox.post(Sent(is_end=True))
            return True
        self._send(reports)
        if reports or is_parting:
            self._mailbox.post(Sent(is_parting))
        if request is not None:
            self._ask(request)
        return is_parting

    def _has_something(self) -> bool:
        return bool(
            self._claim
            or self._values
            or self._reports
            or self._request
            or self._described
            or self._is_parting
        )

    def _take(
        self, request: Optional[wire.NextRequest]
    ) -> Tuple[List[wire.Report], Optional[wire.NextRequest]]:
        """What is to be sent now, each end with the values of its execution that wait: what is left of these goes first."""
        reports, self._reports = self._reports, []
        values, self._values = self._values, {}

        def told(report: wire.Report) -> wire.Report:
            waiting = values.pop(report.execution_id, None)
            self._note_sent(waiting or [])  # nobody has to wait with further ones
            return report.replace(values=waiting)

        reports = [told(report) for report in reports]
        if request is not None and request.reports:
            request = request.replace(reports=[told(report) for report in request.reports])
        return [*(wire.Report(name, values[name]) for name in values), *reports], request

    def _note_sent(self, values: List[wire.Value]) -> None:
        self._unsent_values -= len(values)
        self._unsent_bytes -= sum(len(value.value) for value in values)

    def _send(self, reports: List[wire.Report]) -> None:
        for report in reports:
            order = self._post(wire.Order, "report", report)
            if report.end is None:
                with self._changed:
                    self._note_sent(report.values or [])
            if order.order == "cancel":
                self._mailbox.post(Ordered(report.execution_id))

    def _ask(self, request: wire.NextRequest) -> None:
        answer = self._post_next(request)
        while request.wait_s and not (answer.tasks or answer.leave or self._is_parting):
            request = request.replace(reports=None)  # they were accepted with that answer
            answer = self._post_next(request)
        with self._changed:
            self._tasks += answer.tasks or []
            if self._is_parting:
                self._part()
        self._mailbox.post(Answered(answer.leave))

    def _leave(self, request: wire.NextRequest, ends: List[wire.Report]) -> None:
        try:
            self._send(ends)
            answer = self._post_next(request)
            self._send(give_back(answer.tasks or []))
            self._mailbox.post(Sent(is_end=True))
        except errors.MultinodeError as error:
            self._mailbox.post(Refused(str(error)))

    def _post_next(self, request: wire.NextRequest) -> wire.Next:
        return self._post(wire.Next, "next", request, wait_s=request.wait_s)

    def _post(self, answer_cls: Type[T], name: str, body: object, wait_s: float = 0.0) -> T:
        client, path = self._client, f"/v1/worker/{name}"
        assert client is not None, "nothing is sent before the exchange"
        return persist(lambda: client.call(answer_cls, "POST", path, body, wait_s=wait_s))


class Watch:
    """The thread that holds one request open for orders to one execution after another; each request renews the lease."""

    def __init__(self, api_url: str, token: str, mailbox: Mailbox) -> None:
        self._client = Client(api_url, token, retry_s=PATIENCE_S)
        self._mailbox = mailbox
        self._changed = threading.Condition()
        self._watched = self._asked = ""
        self._thread: Optional[threading.Thread] = None

    def turn_to(self, execution_id: str) -> None:
        """Watches this execution from now on, whose predecessor has ended: what is answered to it is nobody's."""
        with self._changed:
            self._watched = execution_id
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="watch", daemon=True)
            self._thread.start()

    def _live(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watched)
            try:
                while True:
                    order = persist(self._ask)
                    if order.order == "cancel":
                        self._mailbox.post(Ordered(self._asked))
                        time.sleep(RENEWAL_S)
            except errors.MultinodeError as error:
                self._mailbox.post(Refused(str(error), self._asked))
                with self._changed:
                    if self._watched == self._asked:
                        self._watched = ""

    def _ask(self) -> wire.Order:
        self._asked = self._watched  # each time: it may be another by now
        watch = wire.Watch(self._asked, limits.WAIT_S)
        return self._client.call(wire.Order, "POST", "/v1/worker/watch", watch, wait_s=watch.wait_s)


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
