"""For every state of ours, a program of 2023 computes from our answer the status that we have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.control_plane import client_of_2023

from multinode import wire
from multinode_control_plane import model
from multinode_control_plane.api.field_api import answers
from multinode_control_plane.service.snapshots import Attempt, Snapshot

CREATED = 1_700_000_000.25
SPANS = st.sampled_from([0.0, 0.001, 0.4, 0.999, 1.0, 3.3, 59.9, 61.0, 500.0, 7300.5])


@dataclass
class History:
    """An invocation's life, told step by step; ``at`` is the clock."""

    max_retries: int
    timeout_s: float
    at: float = CREATED
    failed: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    cancelled_at: float | None = None

    def wait(self, span_s: float) -> None:
        self.at += span_s

    def attempt(self, **changes: Any) -> None:
        blank = Attempt(
            execution_id=f"exe-{len(self.attempts)}", attempt=self.failed + 1, state=model.STARTING,
            outcome=None, error=None, worker_id="wrk-1", worker_state=model.REQUESTED,
            created_at=self.at, started_at=None, ended_at=None, gone_at=None,
        )  # fmt: skip
        self.attempts.append(replace(blank, **changes))

    def begin(self) -> None:
        self.attempt(state=model.STARTED, started_at=self.at, worker_state=model.EXCHANGED)

    def end(self, outcome: str, *, counts: bool = False) -> None:
        error = (
            None if outcome == "succeeded" else wire.FunctionError("ValueError: no", "ValueError")
        )
        self.attempts[-1] = replace(
            self.attempts[-1], state=model.ENDED, outcome=outcome, error=error, ended_at=self.at
        )
        self.failed += counts

    def cancel(self) -> None:
        self.cancelled_at = self.at

    def seen(self, status: str, *, gone: bool) -> Snapshot:
        """The invocation now. ``gone``: the last worker is; the others may linger."""
        final = status in wire.FINAL_STATUSES
        if self.attempts and gone:
            last = self.attempts[-1]
            self.attempts[-1] = replace(last, gone_at=self.at + 40, worker_state=model.GONE)
        return Snapshot(
            invocation_id="inv-1", project="p", version_id="ver-1", function="f", input="[]",
            settings=wire.FunctionSettings(timeout_s=self.timeout_s, max_retries=self.max_retries),
            status=status, terminated=final and (gone or not self.attempts), result='"r"',
            num_failed_attempts=self.failed, created_at=CREATED,
            finished_at=self.at if final else None, cancel_requested_at=self.cancelled_at,
            attempts=tuple(self.attempts),
        )  # fmt: skip


ENDINGS = {
    "PENDING": ("waits", "its worker was not made", "its worker comes up"),
    "RUNNING": ("runs",),
    "CANCELLING": ("runs",),
    "SUCCEEDED": ("returned", "returned although cancelled"),
    "FAILED": ("raised", "died at its import", "raised although cancelled", "was lost"),
    "CANCELLED": ("while it waits", "while its worker comes up", "raised", "was killed"),
    "TIMED_OUT": ("while it waits", "while its worker comes up", "raised", "raised although cancelled"),
}  # fmt: skip
CASES = [(status, how) for status, ways in ENDINGS.items() for how in ways]


@st.composite
def histories(draw: Any, status: str, how: str) -> Snapshot:
    max_retries, timeout_s = (
        draw(st.integers(0, 3)),
        draw(st.sampled_from([1.0, 0.5, 60.0, 3600.0])),
    )
    told = History(max_retries, timeout_s)
    for _ in range(draw(st.integers(0, max_retries))):
        told.wait(draw(SPANS))
        if draw(st.booleans()):
            told.attempt(state=model.ENDED, outcome="lost", ended_at=told.at, gone_at=told.at)
        if draw(st.booleans()):
            told.begin()
        else:
            told.attempt()  # its main.py cannot be imported
        told.wait(draw(SPANS))
        told.end("failed" if told.attempts[-1].started_at is None else draw(st.sampled_from(["failed", "lost"])), counts=True)  # fmt: skip
        if draw(st.booleans()):
            told.attempts[-1] = replace(told.attempts[-1], gone_at=told.at)
    told.wait(draw(SPANS))
    _finish(draw, told, status, how)
    # One that waits is terminated with its end: no worker is on its way to it.
    gone = status in wire.FINAL_STATUSES and (how == "while it waits" or draw(st.booleans()))
    return told.seen(status, gone=gone)


def _finish(draw: Any, told: History, status: str, how: str) -> None:
    if how in ("its worker was not made",):
        told.attempt(state=model.ENDED, outcome="lost", ended_at=told.at, gone_at=told.at)
    elif how in ("its worker comes up", "while its worker comes up"):
        told.attempt(worker_state=draw(st.sampled_from([model.REQUESTED, model.ACCEPTED, model.EXCHANGED])))  # fmt: skip
    elif how == "died at its import":
        told.attempt()
    elif how not in ("waits", "while it waits"):
        told.begin()
    if status == "PENDING":
        return
    told.wait(draw(SPANS))
    if status in ("CANCELLING", "CANCELLED") or "although" in how:
        told.cancel()
    if status in ("RUNNING", "CANCELLING") or how == "while it waits":
        # A queue_timeout is of at least some time, and so is its wait.
        told.wait(1.0 if status == "TIMED_OUT" else 0.0)
        return
    if status == "CANCELLED":
        told.wait(draw(SPANS) if how != "while its worker comes up" else 0.0)
        told.end("lost" if how == "was killed" else "cancelled", counts=how == "was killed")
    elif status == "TIMED_OUT":
        told.wait(told.timeout_s)
        told.end("timed_out")
    elif status == "SUCCEEDED":
        told.end("succeeded")
    else:
        told.end("lost" if how == "was lost" else "failed", counts=True)


@pytest.mark.parametrize(("status", "how"), CASES)
def test_a_client_of_2023_computes_our_status(status: str, how: str) -> None:
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(histories(status, how))
    def holds(whole: Snapshot) -> None:
        inv = answers.invocation_info(whole)
        assert client_of_2023.status(inv) == status.replace("_", " ")
        assert (inv["invocation_status"] == "TERMINATED") == whole.terminated
        newest = client_of_2023.newest(inv)
        if newest is not None:
            assert newest is inv["executions"][-1]
            assert newest["output"] == whole.result
        if status in ("PENDING", "RUNNING", "CANCELLING", "FAILED"):
            assert client_of_2023.num_failed(inv) == whole.num_failed_attempts
        if status == "FAILED":
            assert newest["error_message"] == "ValueError: no"

    holds()


@pytest.mark.parametrize(("status", "how"), CASES)
def test_what_is_told_is_whole_seconds_and_does_not_move_after_the_end(
    status: str, how: str
) -> None:
    @settings(max_examples=50, deadline=None, derandomize=True, database=None)
    @given(histories(status, how))
    def holds(whole: Snapshot) -> None:
        inv = answers.invocation_info(whole)
        for shown in (inv, *inv["executions"]):
            for name, value in shown.items():
                assert not name.endswith("_time") or value is None or type(value) is int
        assert type(inv["execution_spec"]["timeout_seconds"]) is int
        if whole.finished_at is not None and whole.attempts:
            gone = tuple(replace(a, gone_at=whole.finished_at + 90) for a in whole.attempts)
            later = answers.invocation_info(replace(whole, attempts=gone, terminated=True))
            assert later["last_update_time"] == inv["last_update_time"]
            assert client_of_2023.status(later) == client_of_2023.status(inv)
        for execution in inv["executions"]:
            listed = next(a for a in whole.attempts if a.execution_id == execution["execution_id"])
            alone = answers.execution_info(whole, listed)
            assert {**alone, **execution} == alone

    holds()


def test_a_wait_longer_than_the_timeout_is_no_timeout() -> None:
    told = History(0, 60.0)
    told.wait(7200)
    told.cancel()
    inv = answers.invocation_info(told.seen("CANCELLED", gone=False))
    assert client_of_2023.status(inv) == "CANCELLED"
    assert inv["last_update_time"] == math.floor(CREATED) + 7200
