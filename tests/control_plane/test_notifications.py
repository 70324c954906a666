"""What processes that share a database tell each other."""

import json

from hypothesis import given
from hypothesis import strategies as st

from multinode_control_plane.notifications import MAX_CHARACTERS, Notice, decoded, encoded
from multinode_control_plane.runners import WorkerLaunch
from multinode_control_plane.service.actions import (
    ForgetWorker,
    RemoveLogs,
    SetTimer,
    StartWorker,
    StopWorker,
)
from multinode_control_plane.service.facts import Fact

IDS = st.text("abcdef0123456789-", min_size=1, max_size=36)
EFFECTS = st.one_of(
    st.builds(StopWorker, IDS, st.floats(0, 1e6)),
    st.builds(SetTimer, st.floats(0, 1e10)),
    st.builds(ForgetWorker, IDS),
    st.builds(RemoveLogs, st.lists(IDS, min_size=1, max_size=5).map(tuple)),
)


@given(
    st.frozensets(st.text(max_size=80), max_size=300), st.lists(EFFECTS, max_size=60), st.booleans()
)
def test_what_is_told_is_what_is_heard_in_parts_that_fit(events, effects, woken):
    payloads = list(encoded(Notice("me", events, tuple(effects), woken)))
    assert all(len(payload) < 8000 and payload.isascii() for payload in payloads)
    heard = [decoded(payload) for payload in payloads]
    assert frozenset().union(*(notice.events for notice in heard)) == events
    assert [effect for notice in heard for effect in notice.effects] == effects
    assert any(notice.woken for notice in heard) == woken
    assert {notice.sender for notice in heard} <= {"me"}


def test_nothing_to_tell_is_not_told():
    assert list(encoded(Notice("me"))) == []


def test_much_is_told_in_several_parts():
    events = frozenset(f"inv:{'0' * 32}{i}" for i in range(500))
    payloads = list(encoded(Notice("me", events)))
    assert len(payloads) > 1
    assert max(map(len, payloads)) <= MAX_CHARACTERS + len(json.dumps("me")) + 20


def test_the_output_of_a_large_project_is_removed_in_parts():
    ids = tuple(f"exe-{number:032x}" for number in range(1000))
    payloads = list(encoded(Notice("me", effects=(RemoveLogs(ids),))))
    assert max(map(len, payloads)) < 8000
    heard = [effect for payload in payloads for effect in decoded(payload).effects]
    assert [name for effect in heard for name in effect.execution_ids] == list(ids)


def test_what_only_the_sender_can_do_is_not_told():
    launch = WorkerLaunch("wrk-1", "claim code", "e", "b", "exe-1", 1.0, 1024)
    stop = StopWorker("wrk-2")
    (payload,) = encoded(Notice("me", effects=(StartWorker(launch), Fact("shop"), stop)))
    assert "claim code" not in payload
    assert "shop" not in payload
    assert decoded(payload).effects == (stop,)
