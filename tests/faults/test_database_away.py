"""Control planes whose PostgreSQL is gone: each ends soon when it is told to, and one that cannot lead does not say that it is up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
from tests.acceptance.product import Product
from tests.postgres import Relay

from multinode import wire
from multinode.client import path_of
from multinode_control_plane.leadership import LOOK_S

SOON_S = 8.0
"""In which it ends: each of the few things that it then asks of its database is given up within a second."""


HANGING_S = 25.0
"""The same, where it takes connections and says nothing: each of these things is given up within 3 s, a new connection within 2."""


PROGRAM = """
import os, sys
from multinode_control_plane import server, store
store.AWAY_PATIENCE_S = float(os.environ.get("PATIENCE_S", store.AWAY_PATIENCE_S))
sys.exit(server.main())
"""
"""As `server run`; what waits for the database may have less patience."""
MAIN = """
import time
from pathlib import Path
from multinode import Multinode

mn = Multinode()

@mn.function()
def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.02)
    return "seen"
"""


class Process(Product):
    """One of several, each with a home of its own, that use the database at ``url``."""

    def __init__(self, folder, url, **variables):
        super().__init__(folder)
        folder.mkdir()
        self.environ |= {"MULTINODE_DATABASE": url, "MULTINODE_PORT": "0", **variables}
        self.process = None

    def begin(self):
        """Returns at once."""
        log = (self.folder / "log").open("wb")
        argv = [sys.executable, "-c", PROGRAM, f"--home={self.folder / 'home'}", "--foreground"]
        self.process = subprocess.Popen(argv, env=self.environ, stdout=log, stderr=log)
        log.close()

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def until_up(self):
        deadline = time.monotonic() + 30
        while not (self.folder / "home/server.json").exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def end(self):
        """How long it took to end when it was told to."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log
        return time.monotonic() - began


@pytest.fixture
def begin(tmp_path):
    """Begins a process with this name and URL; none is left."""
    made = []

    def begun(name, url, **variables):
        made.append(Process(tmp_path / name, url, **variables))
        made[-1].begin()
        return made[-1]

    yield begun
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.mark.slow
def test_processes_end_soon_without_it(begin, own_postgres, tmp_path):
    url = own_postgres.new_database(empty=True)
    variables = {"MULTINODE_DATA_DIR": str(tmp_path / "data")}
    leader = begin("leader", url, **variables)
    leader.until_up()
    follower = begin("follower", url, **variables)
    follower.until_up()
    own_postgres.stop()
    time.sleep(3)  # the leader's beat and the follower's look have found out
    for each in (follower, leader):
        assert each.end() < SOON_S
        assert "Traceback" not in each.log


@pytest.mark.slow
def test_processes_end_although_it_takes_what_they_say_and_says_nothing(
    begin, own_postgres, tmp_path
):
    relay = Relay(own_postgres.port)
    url = own_postgres.new_database(empty=True)
    url = url.replace(f":{own_postgres.port}/", f":{relay.port}/")
    variables = {"MULTINODE_DATA_DIR": str(tmp_path / "data")}
    try:
        leader = begin("leader", url, **variables)
        leader.until_up()
        follower = begin("follower", url, **variables)
        follower.until_up()
        relay.passes.clear()
        time.sleep(2 * LOOK_S)  # both have asked by now
        for each in (follower, leader):
            assert each.end() < HANGING_S
            assert "Traceback" not in each.log
    finally:
        relay.close()


@pytest.mark.slow
def test_one_that_waits_for_somebody_to_lead_ends_too(begin, own_postgres):
    relay = Relay(own_postgres.port)
    url = own_postgres.new_database().replace(f":{own_postgres.port}/", f":{relay.port}/")

    def lose(data):
        relay.is_cut = relay.is_cut or b"UPDATE leader" in data
        if relay.is_cut:
            raise ConnectionError
        return True

    relay.on_client_bytes = lose
    try:
        alone = begin("alone", url)
        deadline = time.monotonic() + 30
        while not relay.is_cut:
            assert time.monotonic() < deadline, alone.log
            time.sleep(0.05)
        time.sleep(2 * LOOK_S)
        assert not (alone.folder / "home/server.json").exists()
        assert alone.end() < SOON_S
    finally:
        relay.close()


@pytest.mark.slow
def test_one_that_waits_for_what_runs_waits_for_the_database_too(begin, own_postgres, tmp_path):
    draining = begin("draining", own_postgres.new_database(), PATIENCE_S="0.5")
    draining.until_up()
    draining.write({"tasks/main.py": MAIN})
    draining.run("deploy")
    running = draining.json("invoke", "wait_for", str(tmp_path / "go"), "--detach")
    path = path_of("invocations", running["invocation_id"])
    with closing(draining.client()) as client:
        while client.call(wire.InvocationInfo, "GET", path).status != "RUNNING":
            time.sleep(0.02)
    draining.process.send_signal(signal.SIGINT)
    until_said(draining, "Waiting for 1 running", 1)
    own_postgres.stop()
    draining.process.send_signal(signal.SIGINT)  # cancels, as soon as that can be stored
    until_said(draining, "what runs cannot be seen", 2)
    assert draining.process.poll() is None
    own_postgres.start()
    assert draining.process.wait(60) == 0, draining.log
    assert "Traceback" not in draining.log


def until_said(process, text, times):
    deadline = time.monotonic() + 30
    while process.log.count(text) < times:
        assert process.process.poll() is None, process.log
        assert time.monotonic() < deadline, process.log
        time.sleep(0.05)


UNABLE = """
import sys
from multinode.errors import InputError
from multinode_control_plane import server
from multinode_control_plane.leading import Leading

async def begin(self):
    raise InputError("Nobody would reach it.", "Say how.")

Leading.begin = begin
sys.exit(server.main())
"""


def test_one_that_cannot_lead_does_not_come_up(tmp_path, postgres_server):
    options = [f"--home={tmp_path}", f"--database={postgres_server.new_database()}", "--port=0"]
    done = subprocess.run(
        [sys.executable, "-c", UNABLE, *options, "--ready-fd=1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "error": {
            "code": "invalid_input",
            "message": "Nobody would reach it.",
            "hint": "Say how.",
        }
    }
    assert "Traceback" not in done.stderr
