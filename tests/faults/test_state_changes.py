"""kill -9 of the control plane right before and right after the commit of each kind of state change."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from tests.faults.clients import Caller, history
from tests.faults.fault import Fault
from tests.faults.history import Call, problems
from tests.faults.installation import Installation, wait_until

from multinode_control_plane.model import TRANSITIONS


@dataclass
class Stage:
    """What a scenario plays on: a caller, and names of its own."""

    installation: Installation
    label: str
    caller: Caller

    def call(self, status: str, **more: object) -> Call:
        result = self.label if status == "SUCCEEDED" else None
        return Call(self.label, status, **{"result": result, **more})

    def start(self, function: str, status: str, *arguments: object, **options: object) -> str:
        return self.caller.start(function, self.call(status), *arguments, **options)

    def sign(self, kind: str = "sign") -> str:
        """The name of a sign of this scenario alone."""
        return f"{kind}-{self.label}"

    def wait(self, what: str = "start") -> None:
        """Waits until the call's execution did this."""
        self.installation.wait_for(self.label, what)

    def see(self, function: str, invocation_id: str, status: str) -> None:
        """Looks until it has this status."""
        wait_until(lambda: self.caller.look(function, invocation_id) == status, status)

    def kill_supervisor(self, invocation_id: str) -> None:
        os.kill(self.installation.supervisor_of(invocation_id), signal.SIGKILL)


def returns(stage: Stage) -> None:
    stage.caller.wait("returns", stage.start("returns", "SUCCEEDED"))


def returns_later(stage: Stage) -> None:
    stage.caller.wait("returns", stage.start("returns", "SUCCEEDED", delay=0.1))


def yields(stage: Stage) -> None:
    call = stage.call("SUCCEEDED", result=[stage.label, 3])
    invocation_id = stage.caller.start("yields", call, 3)
    stage.caller.follow("yields", invocation_id)
    stage.caller.wait("yields", invocation_id)


def fails_once(stage: Stage) -> None:
    call = stage.call("SUCCEEDED", starts=(2, 2))
    stage.caller.wait("flaky", stage.caller.start("flaky", call, 1))


def fails(stage: Stage) -> None:
    stage.caller.wait("fails", stage.start("fails", "FAILED"))


def times_out(stage: Stage) -> None:
    stage.installation.give(stage.sign())
    stage.caller.wait("times_out", stage.start("times_out", "TIMED_OUT", stage.sign()))


def is_cancelled(stage: Stage) -> None:
    invocation_id = stage.start("sleeps", "CANCELLED")
    stage.wait()
    stage.caller.cancel("sleeps", invocation_id)
    stage.caller.wait("sleeps", invocation_id)
    assert [e.what for e in stage.installation.effects()[stage.label]] == ["start", "cancelled"]


def is_cancelled_too_late(stage: Stage, status: str = "SUCCEEDED") -> None:
    invocation_id = stage.start("deaf", status, stage.sign(), status == "FAILED")
    stage.wait()
    stage.caller.cancel("deaf", invocation_id)
    stage.see("deaf", invocation_id, "CANCELLING")
    stage.installation.give(stage.sign())
    stage.caller.wait("deaf", invocation_id)


def fails_when_cancelled_too_late(stage: Stage) -> None:
    is_cancelled_too_late(stage, "FAILED")


def is_cancelled_after_its_timeout(stage: Stage) -> None:
    invocation_id = stage.start("times_out", "TIMED_OUT", stage.sign())
    stage.wait("timed-out")
    stage.caller.cancel("times_out", invocation_id)
    stage.see("times_out", invocation_id, "CANCELLING")
    stage.installation.give(stage.sign())
    stage.caller.wait("times_out", invocation_id)


def is_cancelled_and_lost(stage: Stage) -> None:
    invocation_id = stage.start("deaf", "CANCELLED", stage.sign(), False)
    stage.wait()
    stage.caller.cancel("deaf", invocation_id)
    stage.see("deaf", invocation_id, "CANCELLING")
    stage.kill_supervisor(invocation_id)
    stage.caller.wait("deaf", invocation_id)


def is_cancelled_while_it_waits(stage: Stage) -> None:
    call = stage.call("CANCELLED", starts=(0, 0))
    invocation_id = stage.caller.start("returns", call, delay=60)
    stage.caller.cancel("returns", invocation_id)
    stage.caller.wait("returns", invocation_id)


def is_cancelled_while_it_is_imported(stage: Stage) -> None:
    invocation_id = _held_import(stage, "CANCELLED", starts=(0, 0))
    stage.caller.cancel("imported", invocation_id)
    stage.caller.wait("imported", invocation_id)
    _is_gone(stage, invocation_id)
    stage.installation.take_back("held")


def is_lost_while_it_is_imported(stage: Stage) -> None:
    invocation_id = _held_import(stage, "SUCCEEDED")
    stage.kill_supervisor(invocation_id)
    stage.installation.take_back("held")
    stage.caller.wait("imported", invocation_id)


def is_imported_too_slowly(stage: Stage) -> None:
    stage.installation.give("held")
    invocation_id = stage.start("hurries", "SUCCEEDED")
    executions = lambda: stage.installation.detail(invocation_id).executions  # noqa: E731
    wait_until(lambda: [x for x in executions() if x.state == "ended"], "the first one is lost")
    stage.installation.take_back("held")
    stage.caller.wait("hurries", invocation_id)


def _held_import(stage: Stage, status: str, **more: object) -> str:
    stage.installation.give("held")
    before = len(stage.installation.effects().get("main", ()))
    invocation_id = stage.caller.start("imported", stage.call(status, **more))
    wait_until(lambda: len(stage.installation.effects().get("main", ())) > before, "an import")
    return invocation_id


def _is_gone(stage: Stage, invocation_id: str) -> None:
    """Waits until the worker of one that has ended is gone, although nothing lets it go on."""
    wait_until(lambda: stage.installation.detail(invocation_id).invocation.terminated, "its end")


def cannot_be_imported(stage: Stage) -> None:
    stage.installation.give("broken")
    invocation_id = stage.caller.start("returns", stage.call("FAILED", starts=(0, 0)))
    stage.caller.wait("returns", invocation_id)
    stage.installation.take_back("broken")


def cannot_be_imported_once(stage: Stage) -> None:
    stage.installation.give("broken")
    invocation_id = stage.start("imported", "SUCCEEDED")
    wait_until(lambda: stage.installation.detail(invocation_id).invocation.error, "a failure")
    stage.installation.take_back("broken")
    stage.caller.wait("imported", invocation_id)


def waits_too_long(stage: Stage) -> None:
    first = Call(f"{stage.label}-first", "SUCCEEDED", f"{stage.label}-first")
    running = stage.caller.start("impatient", first, stage.sign())
    stage.installation.wait_for(first.label, "start")
    call = stage.call("TIMED_OUT", starts=(0, 0))
    stage.caller.wait("impatient", stage.caller.start("impatient", call, stage.sign()))
    stage.installation.give(stage.sign())
    stage.caller.wait("impatient", running)


def is_lost(stage: Stage) -> None:
    call = stage.call("SUCCEEDED", starts=(2, 2))
    invocation_id = stage.caller.start("sleeps_once", call)
    stage.wait()
    stage.kill_supervisor(invocation_id)
    stage.caller.wait("sleeps_once", invocation_id)


CASES: list[tuple[str, Callable[[Stage], None]]] = [
    ("start", returns),
    ("PENDING > PENDING, None", returns),
    ("worker accepted", returns),
    ("worker exchanges its code", returns),
    ("PENDING > RUNNING", returns),
    ("RUNNING > RUNNING", yields),
    ("values", yields),
    ("RUNNING > SUCCEEDED", returns),
    ("worker gone", returns),
    ("RUNNING > PENDING", fails_once),
    ("RUNNING > PENDING", is_lost),
    ("PENDING > PENDING, ready", fails_once),
    ("PENDING > PENDING, ready", returns_later),
    ("RUNNING > FAILED", fails),
    ("RUNNING > TIMED_OUT", times_out),
    ("RUNNING > CANCELLING", is_cancelled),
    ("CANCELLING > CANCELLED", is_cancelled),
    ("CANCELLING > CANCELLED", is_cancelled_and_lost),
    ("CANCELLING > SUCCEEDED", is_cancelled_too_late),
    ("CANCELLING > FAILED", fails_when_cancelled_too_late),
    ("CANCELLING > TIMED_OUT", is_cancelled_after_its_timeout),
    ("PENDING > CANCELLED", is_cancelled_while_it_waits),
    ("PENDING > CANCELLED", is_cancelled_while_it_is_imported),
    ("worker is to be stopped", is_imported_too_slowly),
    ("PENDING > TIMED_OUT", waits_too_long),
    ("PENDING > FAILED", cannot_be_imported),
    ("PENDING > PENDING, delayed", cannot_be_imported_once),
    ("PENDING > PENDING, delayed", is_lost_while_it_is_imported),
]
UNREACHABLE = {("RUNNING", "CANCELLED")}
"""A worker is told to cancel only once CANCELLING is committed; the table has it for workers of later releases."""


def test_every_transition_has_a_case():
    held = {event.partition(",")[0] for event, _ in CASES}
    edges = {(before, after) for before, follow in TRANSITIONS.items() for after in follow}
    assert {f"{before} > {after}" for before, after in edges - UNREACHABLE} <= held


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("event", "play"), CASES, ids=[f"{e} ({p.__name__})" for e, p in CASES])
def test_nothing_is_lost(shared, event, play, when):
    caller = Caller(shared)
    stage = Stage(shared, f"{CASES.index((event, play))}-{when}", caller)
    shared.start(Fault(event, when))
    with ThreadPoolExecutor(1) as pool:
        playing = pool.submit(play, stage)
        try:
            shared.wait_killed()
        finally:
            shared.restart()
        playing.result()
    wait_until(lambda: shared.server_info().workers == 0, "every worker is gone")
    ids = {item.invocation_id for item in caller.told}
    assert problems(history(shared, [caller], sorted(ids))) == []
    assert shared.server_info().in_flight == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_version_is_registered_whole_or_not_at_all(shared, when):
    project = f"registered-{when}"
    run_through(shared, Fault("version registered", when), "deploy", "--project-name", project)
    again = shared.run("deploy", "--project-name", project, "--json")
    assert not json.loads(again.stdout)["data"]["created"]
    assert shared.run("invoke", f"{project}/returns", "label=registered").stdout == "registered\n"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("event", ["project is to be deleted", "project removed"])
def test_a_project_is_removed_whole(shared, event, when):
    project, label = f"removed-{when}", f"{event.replace(' ', '-')}-{when}"
    shared.start()
    shared.run("deploy", "--project-name", project)
    shared.run("invoke", f"{project}/sleeps", f"label={label}", "--detach")
    shared.wait_for(label, "start")
    shared.end()
    run_through(shared, Fault(event, when), "undeploy", project, "--yes")
    shared.wait_for(label, "cancelled")
    wait_until(lambda: shared.server_info().workers == 0, "every worker is gone")
    projects = json.loads(shared.run("list", "--json").stdout)["data"]
    assert project not in json.dumps(projects)
    shared.run("invoke", f"{project}/returns", "label=x", exit_code=3)


def run_through(installation: Installation, fault: Fault, *command: str) -> None:
    """Runs a command whose control plane is killed under it, and restarted; again where it has given up."""
    installation.start(fault)
    with installation.popen(*command) as process:
        try:
            installation.wait_killed()
        finally:
            installation.restart()
        process.communicate()
    if process.returncode != 0:
        assert process.returncode in (3, 5), "not found: it is removed already; or out of reach"
        installation.run(*command, exit_code=None)
