"""``multinode server``: stop, stop --now, restart, start, run; what goes on after each, and that nothing else does."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.faults.installation import Installation, wait_until


@pytest.fixture
def running(shared: Installation) -> Iterator[Installation]:
    """Its server was started by the command; ends without one."""
    shared.run("server", "start", *shared.options())
    shared.until_led()
    yield shared
    shared.run("server", "stop", "--now")
    nothing_is_left(shared)


@pytest.fixture
def in_foreground(shared: Installation) -> Iterator[subprocess.Popen[str]]:
    """``server run``."""
    with shared.popen("server", "run", *shared.options()) as process:
        read_until(process, "Ctrl-C stops it")
        shared.until_led()
        yield process
        process.kill()


def nothing_is_left(installation: Installation) -> None:
    wait_until(lambda: not installation.processes(), "nothing is left running")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The first line of its stderr that has ``text``."""
    read = []
    for line in process.stderr:
        read.append(line)
        if text in line:
            return line
    raise AssertionError(read)


def hold(installation: Installation, label: str) -> tuple[str, Callable[[], None]]:
    """A function that runs, and how it is let go on."""
    sign = f"go-{label}"
    invocation_id = installation.function("impatient").start(label, sign)
    installation.wait_for(label, "start")
    return invocation_id, lambda: installation.give(sign)


def status_of(installation: Installation, invocation_id: str) -> str:
    return installation.detail(invocation_id).invocation.status


def test_stop_says_what_runs_and_waits_for_it(running):
    held, go = hold(running, "drained")
    with ThreadPoolExecutor(1) as pool, running.popen("server", "stop") as stopping:
        assert "1 running invocation" in read_until(stopping, "Waiting for")
        waiting = pool.submit(running.function("impatient").await_result, held)
        late = running.function("returns").start("late")
        assert status_of(running, late) == "PENDING", "it is for the next control plane"
        assert stopping.poll() is None
        go()
        assert stopping.wait() == 0
        nothing_is_left(running)
        assert "late" not in running.effects()
        running.run("server", "start")
        assert waiting.result() == "drained"
    assert running.function("returns").await_result(late) == "late"


def test_stop_now_cancels_what_runs_and_leaves_what_is_pending_for_the_next_start(running):
    sleeping = running.function("sleeps").start("cancelled-now")
    delayed = running.function("returns").with_options(delay=60).start("later")
    running.wait_for("cancelled-now", "start")
    told = running.run("server", "stop", "--now").stderr
    assert "Cancelling 1 running invocation" in told
    assert "1 pending invocation stays for the next start." in told
    nothing_is_left(running)
    assert [e.what for e in running.effects()["cancelled-now"]] == ["start", "cancelled"]
    running.run("server", "start")
    assert (status_of(running, sleeping), status_of(running, delayed)) == ("CANCELLED", "PENDING")
    running.function("returns").cancel(delayed)


def test_restart_leaves_workers_running_and_adopts_them(running):
    invocation_id = running.function("counts").start("adopted", "go-adopted")
    running.wait_for("adopted", "at-20")
    before, supervisor = running.known(), running.supervisor_of(invocation_id)
    running.run("server", "restart")
    after = running.known()
    assert after["pid"] != before["pid"]
    assert {**after, "pid": 0, "started_at": 0} == {**before, "pid": 0, "started_at": 0}
    assert running.supervisor_of(invocation_id) == supervisor
    assert running.server_info().workers == 1
    running.give("go-adopted")
    *numbers, last = running.function("counts").progress(invocation_id)
    assert (numbers, last) == (list(range(1, len(numbers) + 1)), "end")
    assert len(running.detail(invocation_id).executions) == 1


def test_callers_do_not_notice_a_restart(running):
    with ThreadPoolExecutor(1) as pool:
        held, go = hold(running, "unnoticed")
        waiting = pool.submit(running.function("impatient").await_result, held)
        running.run("server", "restart")
        go()
        assert waiting.result() == "unnoticed"


def test_starts_at_once_start_one(shared):
    starting = [shared.popen("server", "start", "--json") for _ in range(4)]
    said = []
    for process in starting:
        with process:
            said.append(json.loads(process.communicate()[0])["data"])
    assert len({data["pid"] for data in said}) == 1
    assert sorted(data["started"] for data in said) == [False, False, False, True]
    shared.run("server", "stop")
    nothing_is_left(shared)


def test_the_port_of_last_time_is_used_again_or_a_free_one(shared):
    shared.run("server", "start", f"--port={shared.port}")
    shared.run("server", "stop")
    shared.run("server", "start")
    assert shared.known()["url"].endswith(f":{shared.port}")
    shared.run("server", "stop")
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind(("127.0.0.1", shared.port))
        taker.listen()
        refused = shared.run("server", "start", f"--port={shared.port}", exit_code=2)
        assert f"Cannot listen on 127.0.0.1:{shared.port}" in refused.stderr
        assert "Choose another --port" in refused.stderr
        shared.run("server", "start")
        assert not shared.known()["url"].endswith(f":{shared.port}")
        assert shared.run("invoke", "returns", "label=elsewhere").stdout == "elsewhere\n"
        shared.run("server", "stop")
    nothing_is_left(shared)


def test_ctrl_c_waits_for_what_runs(shared, in_foreground):
    _, go = hold(shared, "waited-for")
    in_foreground.send_signal(signal.SIGINT)
    read_until(in_foreground, "Waiting for 1 running")
    go()
    assert in_foreground.wait() == 0
    nothing_is_left(shared)


def test_a_second_ctrl_c_cancels(shared, in_foreground):
    shared.function("sleeps").start("interrupted")
    shared.wait_for("interrupted", "start")
    in_foreground.send_signal(signal.SIGINT)
    read_until(in_foreground, "Waiting for 1 running")
    in_foreground.send_signal(signal.SIGINT)
    assert in_foreground.wait() == 0
    shared.wait_for("interrupted", "cancelled")
    nothing_is_left(shared)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT] * 3], ids=["TERM", "INT3"])
def test_sigterm_and_a_third_ctrl_c_leave_workers_to_the_next_one(shared, in_foreground, signals):
    label = f"left-{len(signals)}"
    invocation_id = shared.function("deaf").start(label, f"go-{label}", False)
    shared.wait_for(label, "start")
    supervisor = shared.supervisor_of(invocation_id)
    for number, sent in enumerate(signals):
        in_foreground.send_signal(sent)
        if number < len(signals) - 1:
            read_until(in_foreground, "Waiting for 1 running")
    assert in_foreground.wait() == 0
    assert supervisor in shared.processes()
    shared.start()
    assert shared.server_info().workers == 1
    shared.give(f"go-{label}")
    wait_until(lambda: shared.detail(invocation_id).invocation.terminated, "its end")
    assert status_of(shared, invocation_id) == "SUCCEEDED"
