"""A worker that was given up and comes back can write nothing. One that is only silent is not given up, and its end is not lost.

And the checker is worth something: with a mistake planted in the product, it finds what comes of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from tests.faults.cells import stage_of
from tests.faults.clients import Caller, history
from tests.faults.history import Call, problems
from tests.faults.installation import Installation, wait_until
from tests.faults.load import LONGEST_PAUSE_S, wind_down
from tests.faults.planted import LostLease, RepeatedFinish, SkippedCompare
from tests.faults.stage import LEASE_S, SILENCE_S, Stage

from multinode_control_plane.runners.worker_processes import is_held, is_living

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def _module_stage(tmp_path_factory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
        with stage_of("process", "sqlite", tmp_path_factory.mktemp("fencing"), patch) as made:
            yield made


@pytest.fixture
def stage(_module_stage, monkeypatch) -> Iterator[Stage]:
    """The stage of this module's tests, with short leases. Its server runs, as it should."""
    for name, value in _module_stage.installation.connection().items():
        monkeypatch.setenv(name, value)
    yield _module_stage
    _module_stage.installation.restart()


@contextmanager
def planted(stage: Stage, *mistakes: object) -> Iterator[None]:
    """The server is one with these mistakes."""
    own = stage.installation.hooks
    stage.installation.hooks = (*own, *mistakes)
    try:
        stage.installation.restart()
        yield
    finally:
        stage.installation.hooks = own


def found_in(stage: Stage, caller: Caller, *, ended_workers: int = 0) -> list[str]:
    """What the checker says of the caller's invocations, when all is over."""
    wind_down(stage.installation)
    ids = [item.invocation_id for item in caller.told if hasattr(item, "call")]
    return problems(history(stage.installation, [caller], ids, ended_workers=ended_workers))


def give_up_unseen(installation: Installation, invocation_id: str) -> int:
    """Kills the server, and has the next one take the invocation's worker for gone, which it is not: its pid."""
    pid, file = installation.supervisor_of(invocation_id), installation.worker_file(invocation_id)
    installation.kill()
    hidden = file.with_name(".hidden")
    file.rename(hidden)
    installation.start()
    hidden.rename(file)
    return pid


# --- given up ---


def comes_back_before_its_claim(stage: Stage, label: str) -> Caller:
    """A worker is given up while it imports ``main.py``; another one is made in its place, and then the first one goes on."""
    caller, installation = Caller(stage.installation), stage.installation
    installation.give("held")
    seen = len(installation.effects().get("main", ()))
    invocation_id = caller.start("returns", Call(label, "SUCCEEDED", label))
    wait_until(lambda: len(installation.effects().get("main", ())) > seen, "its import")
    pid = give_up_unseen(installation, invocation_id)
    wait_until(lambda: len(installation.effects()["main"]) > seen + 1, "the other's import")
    installation.take_back("held")
    caller.wait("returns", invocation_id)
    wait_until(lambda: not is_living(pid), "the end of the worker that was given up")
    return caller


def comes_back_after_its_claim(stage: Stage, label: str) -> Caller:
    """A worker is given up while its function yields, and goes on: it was told of nothing."""
    caller, installation = Caller(stage.installation), stage.installation
    invocation_id = caller.start("counts", Call(label, "FAILED"), f"go-{label}")
    installation.wait_for(label, "at-20")
    pid = give_up_unseen(installation, invocation_id)
    caller.wait("counts", invocation_id)
    caller.look("counts", invocation_id)
    caller.follow("counts", invocation_id)
    time.sleep(0.5)  # where it may write it does so now
    installation.give(f"go-{label}")
    wait_until(lambda: not is_living(pid), "the end of the worker that was given up")
    caller.look("counts", invocation_id)
    return caller


def tells_its_end_twice(stage: Stage, label: str) -> Caller:
    """Everything that workers say arrives twice."""
    caller = Caller(stage.installation)
    stage.way.always("twice")
    try:
        for number in range(4):
            name = f"{label}-{number}"
            call = Call(name, "SUCCEEDED", name, starts=(2, 2))
            invocation_id = caller.start("flaky", call, 1)
            caller.wait("flaky", invocation_id)
            caller.look("flaky", invocation_id)
    finally:
        stage.way.spoil(0)
    return caller


@pytest.mark.parametrize(
    ("scenario", "ended_workers"),
    [
        (comes_back_before_its_claim, 0),
        (comes_back_after_its_claim, 1),
        (tells_its_end_twice, 0),
    ],
)
def test_what_comes_late_or_twice_changes_nothing(stage, scenario, ended_workers):
    caller = scenario(stage, scenario.__name__.replace("_", "-"))
    assert found_in(stage, caller, ended_workers=ended_workers) == []


@pytest.mark.parametrize(
    ("mistake", "scenario", "said"),
    [
        (SkippedCompare(), comes_back_before_its_claim, ["started 2 times, with max_retries=0"]),
        (LostLease(), comes_back_after_its_claim, ["was told to be FAILED, is SUCCEEDED"]),
        # By when its two reports come: during the attempt, or after the next one has begun.
        (RepeatedFinish(), tells_its_end_twice, ["ended twice", "times, which should be 2 to 2"]),
    ],
    ids=["skipped compare", "lost lease", "repeated finish"],
)
def test_a_mistake_in_the_product_is_found(stage, mistake, scenario, said):
    with planted(stage, mistake):
        caller = scenario(stage, type(mistake).__name__)
        found = found_in(stage, caller, ended_workers=1)
    assert any(words in problem for words in said for problem in found), found


# --- silent ---


def start_one_that_yields(stage: Stage, label: str) -> tuple[Caller, str]:
    """It has its worker, and has yielded."""
    caller = Caller(stage.installation)
    invocation_id = caller.start("counts", Call(label, "SUCCEEDED", "end"), f"go-{label}")
    stage.installation.wait_for(label, "at-20")
    return caller, invocation_id


def ends_well(stage: Stage, caller: Caller, invocation_id: str, label: str) -> None:
    stage.installation.give(f"go-{label}")
    caller.follow("counts", invocation_id)
    caller.wait("counts", invocation_id)
    assert found_in(stage, caller) == []


def is_unreachable(installation: Installation, invocation_id: str) -> bool:
    return installation.detail(invocation_id).invocation.unreachable


def test_a_worker_that_is_stopped_for_less_than_its_lease_goes_on(stage):
    caller, invocation_id = start_one_that_yields(stage, "stopped")
    pid = stage.installation.supervisor_of(invocation_id)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_unreachable(stage.installation, invocation_id), "its silence is seen")
        assert caller.look("counts", invocation_id) == "RUNNING"
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_unreachable(stage.installation, invocation_id), "it is heard again")
    ends_well(stage, caller, invocation_id, "stopped")


def test_a_worker_that_is_cut_off_for_less_than_its_lease_ends_as_it_did_meanwhile(stage):
    caller, invocation_id = start_one_that_yields(stage, "cut-off")
    stage.way.part()
    try:
        stage.installation.give("go-cut-off")
        stage.installation.wait_for("cut-off", "end")
        wait_until(lambda: is_unreachable(stage.installation, invocation_id), "its silence is seen")
        assert caller.look("counts", invocation_id) == "RUNNING"
    finally:
        stage.way.meet()
    ends_well(stage, caller, invocation_id, "cut-off")


def test_a_control_plane_that_is_away_for_longer_than_all_leases_loses_no_end(stage):
    over, ended = start_one_that_yields(stage, "over")
    other = stage.installation.function("naps").start("on", 600)
    stage.installation.wait_for("on", "start")
    pid = stage.installation.supervisor_of(other)
    stage.installation.kill()
    stage.installation.give("go-over")
    stage.installation.wait_for("over", "end")
    time.sleep(LEASE_S + SILENCE_S)
    stage.installation.start()
    over.follow("counts", ended)
    over.wait("counts", ended)
    naps = stage.installation.function("naps")
    assert str(naps.get(other).status) == "RUNNING"
    assert is_living(pid)
    naps.cancel(other)
    assert found_in(stage, over) == []


def test_a_control_plane_that_is_stopped_for_longer_than_all_leases_gives_nobody_up(stage):
    caller, invocation_id = start_one_that_yields(stage, "on-its-own")
    stage.installation.send(signal.SIGSTOP)
    time.sleep(LEASE_S + SILENCE_S)
    stage.installation.send(signal.SIGCONT)
    assert caller.look("counts", invocation_id) == "RUNNING"
    ends_well(stage, caller, invocation_id, "on-its-own")


def test_a_worker_that_is_silent_for_longer_than_its_lease_is_given_up_with_all_that_is_its_own(
    stage,
):
    caller = Caller(stage.installation)
    invocation_id = caller.start("counts", Call("given-up", "FAILED"), "go-given-up")
    stage.installation.wait_for("given-up", "start")
    pid, file = (
        stage.installation.supervisor_of(invocation_id),
        stage.installation.worker_file(invocation_id),
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        assert caller.wait("counts", invocation_id) == "FAILED"
        assert not is_held(file)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert found_in(stage, caller, ended_workers=1) == []
