"""The local control plane as commands find and start it, with real processes."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multinode import get_deployed_function
from multinode.errors import MultinodeError, ProjectNotFound

COMMAND = Path(sys.executable).with_name("multinode")


@pytest.fixture
def server(tmp_path):
    """Starts the command in the background with a home of its own; the control plane is stopped at the end."""
    environ = {**os.environ, "MULTINODE_HOME": str(tmp_path / "home"), "MULTINODE_PORT": "0"}

    def begin(*arguments):
        return subprocess.Popen(
            [COMMAND, *arguments],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield begin
    assert outcome(begin("server", "stop", "--now"))[0] == 0


def outcome(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_commands_that_start_at_once_start_one(server):
    """Nobody has logged in: each of the three needs a control plane, and none is there."""
    found = [outcome(process) for process in [server("list", "--json") for _ in range(3)]]
    assert [code for code, _, _ in found] == [0, 0, 0], found
    assert sum("Started a local control plane" in err for _, _, err in found) == 1, found


def test_a_command_waits_for_one_that_is_coming_up(server, tmp_path):
    """As a service that has just been started; that one keeps its data folder, and the command uses it."""
    running = server("server", "run")
    lock = tmp_path / "home" / "server" / "lock"
    while not (lock.exists() and lock.read_text()):
        assert running.poll() is None
        time.sleep(0.01)
    code, _, err = outcome(server("list"))
    assert (code, "Started" in err) == (0, False), err
    assert outcome(server("server", "stop", "--now"))[0] == 0
    outcome(running)
    assert outcome(server("list"))[0] == 0, "which starts one, for the stop at the end"


def test_bad_options_are_an_error_while_one_runs(server):
    started = json.loads(outcome(server("server", "start", "--json"))[1])["data"]
    for words, message in (
        (("--port", "99999"), "--port 99999 is not a port."),
        (("--runner", "nomad"), "The runner 'nomad' is not part of this release."),
    ):
        code, out, err = outcome(server("server", "start", *words))
        assert (code, out) == (2, ""), err
        assert message in err
    code, out, err = outcome(server("server", "start", "--port", "9999"))
    assert (code, f"(pid {started['pid']})" in out) == (0, True)
    assert "It keeps the options with which it was started." in err
    assert outcome(server("server", "start"))[2] == ""


def test_an_application_notices_nothing_of_a_restart(server, tmp_path, monkeypatch):
    """It finds the local control plane by its file, which is not there while no server runs."""
    monkeypatch.setenv("MULTINODE_HOME", str(tmp_path / "home"))
    assert outcome(server("server", "start"))[0] == 0
    failures = []

    def call():
        try:
            get_deployed_function("shop", "greet")
        except ProjectNotFound:  # the answer of a control plane that runs
            return
        except MultinodeError as error:
            failures.append(error)

    call()  # from now on this process knows it
    restart = server("server", "restart")
    callers = []
    while restart.poll() is None:  # one every 20 ms: some in the gap between the two servers
        callers.append(threading.Thread(target=call))
        callers[-1].start()
        callers[-1].join(0.02)
    for caller in callers:
        caller.join()
    assert outcome(restart)[0] == 0
    assert failures == []
