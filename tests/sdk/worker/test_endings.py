"""How an execution ended, as a table."""

import pytest

from multinode.worker.endings import Death, Interrupt, end_before_start, end_of_death, end_of_frame

RETURNED = {"result": "1", "error": None, "retryable": True, "peak_memory_bytes": 1}
RAISED = {**RETURNED, "result": None, "error": {"message": "ValueError: x", "type": "ValueError"}}


@pytest.mark.parametrize(
    ("frame", "order", "is_delivered", "outcome", "result", "message"),
    [
        (RETURNED, None, False, "succeeded", "1", None),
        (RAISED, None, False, "failed", None, "ValueError: x"),
        (RETURNED, b"c", False, "succeeded", "1", None),
        (RAISED, b"t", False, "failed", None, "ValueError: x"),
        (RETURNED, b"c", True, "cancelled", "1", None),
        (RAISED, b"c", True, "cancelled", None, "ValueError: x"),
        (RAISED, b"t", True, "timed_out", None, "ValueError: x"),
        (RETURNED, b"p", True, "lost", None, "worker lost: the machine was taken away (SIGTERM)"),
    ],
)
def test_end_that_the_child_told(frame, order, is_delivered, outcome, result, message):
    interrupt = order and Interrupt(order, 1.0, is_delivered)
    end = end_of_frame(frame, interrupt, 5.0)
    assert (end.outcome, end.result) == (outcome, result)
    assert (end.error and end.error.message) == message


@pytest.mark.parametrize(
    ("death", "order", "outcome", "message"),
    [
        (Death(3, None, 1), None, "lost", "exited with code 3"),
        (Death(None, 11, 1), None, "lost", "killed by signal 11"),
        (Death(None, 9, 1, was_out_of_memory=True), None, "lost", "killed: out of memory at its limit of 256 MiB"),
        (Death(None, 11, 1, was_out_of_memory=True), None, "lost", "killed by signal 11"),
        (Death(213, None, 1), None, "failed", "the function closed file descriptors"),
        (Death(None, 9, 1, was_killed_by_us=True), b"c", "cancelled", "killed: it had not ended 120 s after it was interrupted"),
        (Death(None, 9, 1, was_killed_by_us=True), b"t", "timed_out", "killed: it had not ended 120 s after it was interrupted"),
        (Death(None, 9, 1, was_killed_by_us=True), b"p", "lost", "worker lost: the machine was taken away (SIGTERM); killed:"),
        (Death(3, None, 1), b"c", "cancelled", "exited with code 3"),
    ],
)  # fmt: skip
def test_end_of_a_child_that_told_none(death, order, outcome, message):
    end = end_of_death(death, order and Interrupt(order, 120.0, False), 256, 5.0)
    assert end.outcome == outcome
    assert end.error.message.startswith(message)
    assert end.retryable is (outcome in ("lost", "failed"))


def test_end_before_start():
    assert end_before_start(b"c").outcome == "cancelled"
    assert end_before_start(b"p").outcome == "lost"
