"""A worker that is killed is noticed at once, by whatever part of it was killed, and nothing of it goes on."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from tests.faults.installation import Installation, wait_until

from multinode import wire
from multinode.errors import InvocationFailedError
from multinode.worker import processes
from multinode_control_plane.runners.worker_processes import is_held, is_living

NOTICED_S = 10.0
"""A lease of a silent worker is 30 s; its end is seen without one, in some milliseconds on a machine that is idle."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def running(shared: Installation) -> Installation:
    shared.start()
    return shared


def fail_by(
    installation: Installation, function: str, label: str, pid: int, invocation_id: str
) -> wire.InvocationInfo:
    """Kills the process and waits for the invocation's failure, which has to come soon."""
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(InvocationFailedError):
        installation.function(function).await_result(invocation_id)
    assert time.monotonic() - at < NOTICED_S
    wait_until(
        lambda: installation.detail(invocation_id).invocation.terminated, "the worker is gone"
    )
    starts = [e for e in installation.effects()[label] if e.what == "start"]
    assert len(starts) == 1, "max_retries=0"
    return installation.detail(invocation_id).invocation


def test_a_killed_supervisor(running):
    invocation_id = running.function("sleeps").start("supervisor")
    child = int(running.wait_for("supervisor", "start").text)
    pid = running.supervisor_of(invocation_id)
    info = fail_by(running, "sleeps", "supervisor", pid, invocation_id)
    assert info.status == "FAILED"
    assert info.error.message == "worker lost: its supervisor was killed by signal 9"
    assert not is_living(child), "its child dies with it"


def test_a_killed_child(running):
    invocation_id = running.function("sleeps").start("child")
    child = int(running.wait_for("child", "start").text)
    info = fail_by(running, "sleeps", "child", child, invocation_id)
    assert (info.status, info.error.message) == ("FAILED", "killed by signal 9")


def test_a_killed_supervisor_of_a_worker_that_was_adopted(running):
    invocation_id = running.function("sleeps").start("adopted")
    child = int(running.wait_for("adopted", "start").text)
    running.restart()
    pid = running.supervisor_of(invocation_id)
    info = fail_by(running, "sleeps", "adopted", pid, invocation_id)
    assert info.status == "FAILED"
    assert info.error.message.startswith("worker lost: ")
    assert not is_living(child)


@pytest.mark.parametrize("is_adopted", [False, True], ids=["own", "adopted"])
def test_processes_in_sessions_of_their_own_go_with_their_supervisor(running, is_adopted):
    label = f"family-{is_adopted}"
    invocation_id = running.function("leaves_processes").start(label)
    child = int(running.wait_for(label, "start").text)
    grandchild = wait_until(lambda: processes.children(child), "a grandchild")[0]
    if is_adopted:
        running.restart()
    pid = running.supervisor_of(invocation_id)
    fail_by(running, "leaves_processes", label, pid, invocation_id)
    assert not is_living(child)
    assert not is_living(grandchild)
    running.function("alone").call_remote(f"after-{label}")


def test_a_worker_that_is_lost_is_retried(running):
    function = running.function("sleeps_once")
    invocation_id = function.start("retried")
    running.wait_for("retried", "start")
    os.kill(running.supervisor_of(invocation_id), signal.SIGKILL)
    assert function.await_result(invocation_id) == "retried"
    assert function.get(invocation_id).num_failed_attempts == 1


def test_a_worker_that_was_killed_while_the_control_plane_was_away(running):
    invocation_id = running.function("sleeps").start("unseen")
    running.wait_for("unseen", "start")
    pid, file = running.supervisor_of(invocation_id), running.worker_file(invocation_id)
    running.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_held(file), "the death of its last thread")
    running.start()
    with pytest.raises(
        InvocationFailedError, match="worker lost: its supervisor was killed by signal 9"
    ):
        running.function("sleeps").await_result(invocation_id)


def test_the_slot_of_a_killed_worker_is_free_at_once(running):
    first = running.function("leaves_processes").start("slot-1")
    running.wait_for("slot-1", "start")
    second = running.function("leaves_processes").start("slot-2")
    os.kill(running.supervisor_of(first), signal.SIGKILL)
    at = time.monotonic()
    running.wait_for("slot-2", "start")
    assert time.monotonic() - at < NOTICED_S
    running.function("leaves_processes").cancel(second)
    wait_until(lambda: running.server_info().workers == 0, "every worker is gone")
