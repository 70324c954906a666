"""The checker finds what is wrong: each planted fault of a history is reported, and a right one is not."""

from dataclasses import replace

import pytest
from tests.faults.history import (
    Call,
    Effect,
    History,
    Queue,
    Seen,
    Started,
    Stored,
    Terms,
    Yielded,
    problems,
)

CALL = Call("a", "SUCCEEDED", "a")
OTHER = Call("b", "SUCCEEDED", "b")
VALUES = ((1, "x"), (2, "y"))


def right() -> History:
    """Two calls, all well."""
    return History(
        told={
            "client": (
                Started(CALL, "inv-a", "alone"),
                Seen("inv-a", "PENDING"),
                Seen("inv-a", "RUNNING"),
                Yielded("inv-a", VALUES),
                Seen("inv-a", "SUCCEEDED", "a", "12:00"),
                Started(OTHER, "inv-b", "alone"),
            )
        },
        stored={
            "inv-a": Stored("SUCCEEDED", "a", "12:00", values=VALUES),
            "inv-b": Stored("SUCCEEDED", "b", "12:01"),
        },
        effects={
            "a": (Effect("a", "start", 1), Effect("a", "end", 2)),
            "b": (Effect("b", "start", 3), Effect("b", "end", 4)),
        },
        terms={"alone": Terms(max_concurrency=1, cpu=1.5)},
        cpu=2.0,
        queues={"alone": Queue(workers=0, ready=0)},
    )


def told(*more):
    def change(history):
        return replace(history, told={**history.told, "other": more})

    return change


def stored(invocation_id="inv-a", **changes):
    def change(history):
        item = replace(history.stored.get(invocation_id, Stored("SUCCEEDED")), **changes)
        return replace(history, stored={**history.stored, invocation_id: item})

    return change


def effects(*more, label="a"):
    def change(history):
        return replace(history, effects={**history.effects, label: more})

    return change


def lost(history):
    return replace(history, stored={"inv-b": history.stored["inv-b"]})


def known(**changes):
    def change(history):
        return replace(history, **changes)

    return change


def both(*changes):
    def change(history):
        for each in changes:
            history = each(history)
        return history

    return change


START, END = Effect("a", "start", 1), Effect("a", "end", 2)
LOST = both(
    known(told={"client": [Started(CALL, "inv-a", "alone"), Started(OTHER, "inv-b", "alone")]}),
    stored(status="FAILED", result=None, losses=("lost",), values=()),
)


def test_a_right_history_has_no_problems():
    assert problems(right()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lost, "inv-a: its id was told, and it is not stored"),
        (stored("inv-x"), "inv-x: stored, and nobody was told"),
        (told(Started(CALL, "inv-b")), "a: started as 2 invocations"),
        (stored(status="RUNNING"), "is RUNNING for ever"),
        (stored(terminated=False), "its worker is not gone"),
        (stored(status="FAILED"), "should be SUCCEEDED, is FAILED"),
        (stored(result="z"), "its result should be 'a', is 'z'"),
        (told(Seen("inv-a", "FAILED")), "was told to be FAILED, is SUCCEEDED"),
        (told(Seen("inv-a", "SUCCEEDED", "z")), "its result was told as 'z', is 'a'"),
        (told(Seen("inv-a", "SUCCEEDED", "a", "11:00")), "ended twice, at 11:00 and 12:00"),
        (told(Seen("inv-b", "FAILED"), Seen("inv-b", "RUNNING")), "saw it FAILED, then RUNNING"),
        (told(Seen("inv-b", "RUNNING"), Seen("inv-b", "PENDING")), "and it has no retries"),
        (stored(values=((1, "x"), (3, "y"))), "stored: the numbers of its values are [1, 3]"),
        (stored(values=((2, "y"), (1, "x"))), "stored: the numbers of its values are [2, 1]"),
        (
            told(Yielded("inv-a", ((1, "x"), (1, "x")))),
            "told: the numbers of its values are [1, 1]",
        ),
        (told(Yielded("inv-a", ((1, "z"),), False)), "value 1, 'z', is not stored"),
        (stored(values=()), "value 1, 'x', is not stored"),
        (told(Yielded("inv-a", ((1, "x"),))), "1 values of 2"),
        (effects(START, START, END), "started 2 times, which should be 1 to 1"),
        (effects(START, START, END), "started 2 times, the store knows of 1"),
        (effects(END), "started 0 times, which should be 1 to 1"),
        (stored(attempts=(1, 1)), "the store has an attempt twice"),
        (effects(START), "its code has not come to its end"),
        (effects(START, END, END), "came to its end 2 times"),
        (effects(START, Effect("a", "end", 5)), "a and b ran at the same time"),
        (
            both(effects(START, Effect("a", "end", 5)), known(terms={"alone": Terms(cpu=1.5)})),
            "b: 3 cpu were used at once, and there are 2",
        ),
        (effects(START, START, END), "a: started 2 times, with max_retries=0"),
        (known(queues={"alone": Queue(1, 0)}), "alone: 1 slots are taken"),
        (known(queues={"alone": Queue(-1, 0)}), "alone: -1 slots are taken"),
        (known(queues={"alone": Queue(0, 2)}), "alone: 2 are counted as ready"),
        (known(living_workers=["wrk-a"]), "wrk-a: the store has it as living"),
        (known(left=["container x"]), "container x: is left"),
        (LOST, "1 executions were lost, and the faults have ended 0 workers"),
        (both(LOST, known(ended_workers=1), effects(START, START)), "with max_retries=0"),
        (
            both(LOST, known(ended_workers=1, terms={"alone": Terms(max_retries=1)})),
            "should be SUCCEEDED, is FAILED",
        ),
    ],
)
def test_what_is_wrong_is_found(change, said):
    assert any(said in problem for problem in problems(change(right())))


@pytest.mark.parametrize("starts", [(), (START,), (START, END)])
def test_a_failure_by_a_fault_is_no_problem(starts):
    """Its worker may be killed after its claim and before its code, and after its code and before its report."""
    history = both(LOST, known(ended_workers=1), effects(*starts))(right())
    assert problems(history) == []


def test_values_that_are_not_all_there_yet_are_no_problem():
    assert problems(told(Yielded("inv-a", VALUES[:1], is_whole=False))(right())) == []
