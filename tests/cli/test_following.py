"""``invoke`` while it follows: statuses, values and output as they come, and what Ctrl-C does."""

import signal
import sys
import threading

import pytest
from tests.cli.scripted_control_plane import NOW, Lines, Refusal, invocation, version
from tests.cli.terminal import at_terminal

from multinode import wire
from multinode_cli.commands import following, run
from multinode_cli.commands.following import LineJoiner

INVOCATION = "/v1/invocations/inv-1"
CANCELLING = "Cancelling inv-1; Ctrl-C again leaves it to itself."
INVOKE = ("invoke", "billing/add", "1", "2")


class Followed:
    """An invocation that goes on when the test says so; each request that waits is answered then."""

    def __init__(self, plane):
        self._changed = threading.Condition()
        self._statuses = [invocation("PENDING")]
        self._values = []
        self.on_wait = None  # called once, when a request for the status waits
        plane.on("GET", "/v1/projects/billing/versions/latest", version())
        answer = wire.StartAnswer(["inv-1"])
        plane.on("POST", "/v1/projects/billing/functions/add/invocations", answer)
        plane.on("GET", INVOCATION, self._status)
        plane.on("GET", f"{INVOCATION}/values", self._values_after)
        plane.on("GET", f"{INVOCATION}/logs", Lines())

    def now(self, status, **changes):
        """The next status; every one is seen by whoever waits."""
        with self._changed:
            revision = len(self._statuses) + 1
            self._statuses.append(invocation(status, revision=revision, **changes))
            self._changed.notify_all()

    def publish(self, text):
        with self._changed:
            self._values.append(wire.Value(len(self._values) + 1, text))
            self._changed.notify_all()

    def _is_over(self):
        return self._statuses[-1].status in wire.FINAL_STATUSES

    def _status(self, request):
        seen = int(request.query.get("revision", 0))
        if seen == len(self._statuses) and self.on_wait:
            act, self.on_wait = self.on_wait, None
            act()
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._statuses) > seen, 30)
            return self._statuses[seen]

    def _values_after(self, request):
        seen = int(request.query["after"])
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._values) > seen or self._is_over(), 30)
            return wire.ValuesAnswer(self._values[seen:], ended=self._is_over())


@pytest.fixture
def followed(plane):
    made = Followed(plane)
    yield made
    made.now("SUCCEEDED")  # whatever still waits comes to its end


def interrupt():
    """Ctrl-C: the main thread is the one that gets it."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def script(followed, *steps):
    """Each step when the one before it was seen."""
    first, *rest = steps

    def act():
        followed.on_wait = script(followed, *rest) if rest else None
        first()

    return act


# --- statuses, values, output ---


def test_statuses_and_their_reasons_are_told_in_order_and_once(cli, followed):
    followed.on_wait = script(
        followed,
        lambda: followed.now("PENDING", pending_reason="no room"),
        lambda: followed.now("PENDING", pending_reason="no room"),
        lambda: followed.now("RUNNING"),
        lambda: followed.now("RUNNING", unreachable=True),
        lambda: followed.now("SUCCEEDED"),
    )
    outcome = cli(*INVOKE)
    assert (outcome.code, outcome.out) == (0, "3\n")
    assert outcome.err.splitlines() == [
        "Started inv-1",
        "PENDING: no room",
        "RUNNING",
        "RUNNING (its worker is unreachable)",
        "SUCCEEDED  inv-1  ran 1.5 s, waited 0 ms",
    ]


def test_a_reason_that_counts_down_is_told_once(cli, followed):
    """The text is another each time; what it says is not."""
    followed.on_wait = script(
        followed,
        lambda: followed.now("PENDING", pending_reason="retry in 8 s"),
        lambda: followed.now("PENDING", pending_reason="retry in 3 s"),
        lambda: followed.now("PENDING", pending_reason="no room"),
        lambda: followed.now("SUCCEEDED"),
    )
    told = cli(*INVOKE).err.splitlines()
    assert told[1:3] == ["PENDING: retry in 8 s", "PENDING: no room"]


def test_a_pending_one_is_asked_for_more_often(cli, followed, plane):
    followed.on_wait = script(
        followed, lambda: followed.now("RUNNING"), lambda: followed.now("SUCCEEDED")
    )
    cli(*INVOKE)
    waits = [
        float(r.query["wait_s"])
        for r in plane.requests
        if r.path == INVOCATION and "revision" in r.query
    ]
    assert waits == [following.PENDING_WAIT_S, 25.0]


@pytest.mark.parametrize(
    ("text", "elapsed_s", "shown"),
    [
        ("PENDING: retry in 8 s", 2.2, "PENDING: retry in 6 s"),
        ("PENDING: no space (next try in 4 s)", 10.0, "PENDING: no space (next try in 0 s)"),
        ("PENDING: waiting for max_concurrency (1 of 1 in use)", 2.0, "PENDING: waiting for max_concurrency (1 of 1 in use)"),
        ("RUNNING", 3.0, "RUNNING"),
    ],
)  # fmt: skip
def test_what_counts_down_goes_on_to_while_nothing_is_heard(text, elapsed_s, shown):
    assert following.counted_down(text, elapsed_s) == shown


def test_values_are_told_when_they_come_not_at_the_end(cli, followed, plane):
    """It ends only when both values were received."""
    answer = plane.answers["GET", f"{INVOCATION}/values"]

    def values(request):
        if request.query["after"] == "1":
            followed.publish('"half"')
        if request.query["after"] == "2":
            followed.now("SUCCEEDED")
        return answer(request)

    plane.on("GET", f"{INVOCATION}/values", values)
    followed.now("RUNNING")
    followed.publish('{"done": 1}')
    told = [line for line in cli(*INVOKE).err.splitlines() if line.startswith("value")]
    assert told == ['value 1: {"done": 1}', "value 2: half"]


def test_no_logs_asks_for_none(cli, followed, plane):
    followed.now("SUCCEEDED")
    assert cli(*INVOKE, "--no-logs").code == 0
    assert f"{INVOCATION}/logs" not in {request.path for request in plane.requests}


def test_output_that_cannot_be_had_does_not_hide_the_result(cli, followed, plane):
    plane.on("GET", f"{INVOCATION}/logs", Refusal(500, "internal_error", "No logs today."))
    followed.now("SUCCEEDED")
    outcome = cli(*INVOKE)
    assert (outcome.code, outcome.out) == (0, "3\n")


def test_an_invocation_that_is_removed_meanwhile_is_an_error(cli, followed, plane):
    def remove():
        gone = Refusal(404, "invocation_not_found", "There is no invocation 'inv-1'.")
        plane.on("GET", INVOCATION, gone)
        followed.now("RUNNING")

    followed.on_wait = remove
    outcome = cli(*INVOKE)
    assert (outcome.code, outcome.out) == (3, "")
    assert "There is no invocation 'inv-1'." in outcome.err


def test_on_a_terminal_the_status_is_one_line_that_changes(followed, monkeypatch, tmp_path):
    terminal = at_terminal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    followed.now("RUNNING")
    followed.publish('"half"')
    followed.now("SUCCEEDED")
    assert run(INVOKE) == 0
    assert terminal.stdout.getvalue() == "3\n"
    said = terminal.stderr.getvalue()
    assert "value 1: half" in said
    assert "\nRUNNING\n" not in said
    assert "\x1b[32mSUCCEEDED  inv-1" in said


# --- Ctrl-C ---


def cancels(plane):
    return [item for item in plane.requests if item.path == f"{INVOCATION}/cancel"]


@pytest.mark.parametrize(("end", "result"), [("CANCELLED", ""), ("SUCCEEDED", "3\n")])
def test_ctrl_c_asks_to_cancel_and_waits_for_the_end(cli, followed, plane, end, result):
    def cancelling(request):
        followed.now("CANCELLING")
        followed.publish('"cleaning up"')
        followed.now(end)
        return invocation("CANCELLING")

    plane.on("POST", f"{INVOCATION}/cancel", cancelling)
    followed.now("RUNNING")
    followed.on_wait = interrupt
    outcome = cli(*INVOKE)
    assert (outcome.code, outcome.out) == (130, result)
    assert len(cancels(plane)) == 1
    told = outcome.err.splitlines()
    order = [told.index(line) for line in (CANCELLING, "CANCELLING", "value 1: cleaning up")]
    assert order[0] < min(order[1:])
    assert told[-1].startswith(f"{end}  inv-1")


def test_ctrl_c_twice_leaves_it_to_itself(cli, followed, plane):
    def cancelling(request):
        followed.on_wait = interrupt
        followed.now("CANCELLING")
        return invocation("CANCELLING")

    plane.on("POST", f"{INVOCATION}/cancel", cancelling)
    followed.now("RUNNING")
    followed.on_wait = interrupt
    outcome = cli(*INVOKE)
    assert (outcome.code, outcome.out) == (130, "")
    assert len(cancels(plane)) == 1
    assert outcome.err.splitlines()[-1] == (
        "Detached: inv-1 goes on ending. `multinode describe inv-1` shows it."
    )


def test_ctrl_c_again_before_the_cancel_was_answered(cli, followed, plane):
    def cancelling(request):
        interrupt()
        followed.now("CANCELLED")
        return invocation("CANCELLING")

    plane.on("POST", f"{INVOCATION}/cancel", cancelling)
    followed.now("RUNNING")
    followed.on_wait = interrupt
    outcome = cli(*INVOKE)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1].startswith("Detached: inv-1")


def test_what_had_ended_already_when_ctrl_c_came(cli, followed, plane):
    """The cancel is answered with the end; the result is shown all the same."""
    plane.on("POST", f"{INVOCATION}/cancel", lambda _: followed.now("FAILED") or invocation("FAILED"))  # fmt: skip
    followed.now("RUNNING")
    followed.on_wait = interrupt
    outcome = cli(*INVOKE)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1].startswith("FAILED  inv-1")


def test_logs_that_are_followed_end_with_ctrl_c(cli, plane):
    def logs(request):
        interrupt()
        return Lines(wire.LogRecord(NOW, "stdout", "late\n"))

    plane.on("GET", f"{INVOCATION}/logs", logs)
    outcome = cli("logs", "inv-1", "-f")
    assert outcome.code == 130
    assert outcome.err == "Interrupted.\n"


# --- pieces of lines ---


def test_pieces_are_joined_for_each_stream_and_attempt_apart():
    joiner = LineJoiner()
    pieces = [("stdout", "on", 1), ("stderr", "err\nhalf", 1), ("stdout", "e\ntwo\n", 1), ("stdout", "x", 2)]  # fmt: skip
    lines = [joiner.take(wire.LogRecord(NOW, *piece)) for piece in pieces]
    assert lines == [[], ["err"], ["one", "two"], []]
    assert joiner.flush() == ["half", "x"]
    assert joiner.flush() == []


def test_a_note_of_ours_is_a_line_though_nothing_ends_it():
    assert LineJoiner().take(wire.LogRecord(NOW, "system", "worker lost", 1)) == ["worker lost"]


def test_the_handler_of_ctrl_c_is_pythons_own():
    """Or the tests above would show nothing."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.version_info >= (3, 10)
