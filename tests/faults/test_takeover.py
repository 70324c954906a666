"""Two control planes on one PostgreSQL: another takes over when the leader dies or hangs, and the old one can do nothing."""

from __future__ import annotations

import os
import signal
import time
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.acceptance.product import Product
from tests.control_plane.bench import make_bench
from tests.postgres import Relay

from multinode import wire
from multinode.client import path_of
from multinode.errors import ServerStopping
from multinode_control_plane.leadership import PATIENCE_S, Watch
from multinode_control_plane.service import leaders
from multinode_control_plane.service.leaders import Leader

MAIN = """
import time
from pathlib import Path
from multinode import Multinode

mn = Multinode()

@mn.function()
def add(a, b):
    return a + b

@mn.function()
def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.02)
    return "seen"
"""
TAKEN_OVER_S = 10.0


class Pair:
    """Two homes on one database, which share a data folder. Workers reach the second: it passes on what is the leader's."""

    def __init__(self, folder, url):
        self.products = []
        self.url = url
        self.relay = Relay(9)
        for name in ("a", "b"):
            made = Product(folder / name)
            made.folder.mkdir()
            made.environ |= {
                "MULTINODE_DATABASE": url,
                "MULTINODE_DATA_DIR": str(folder / "data"),
                "MULTINODE_WORKER_URL": f"http://127.0.0.1:{self.relay.port}",
            }
            made.write({"tasks/main.py": MAIN})
            self.products.append(made)
        self.first, self.second = self.products
        for product in self.products:
            product.run("server", "start", "--port", "0")
        self.relay.lead_to(urlsplit(self.second.server["url"]).port)
        assert self.leader() == self.first.server["url"]
        assert self.second.json("deploy")["created"]

    def leader(self):
        with psycopg.connect(self.url) as connection:
            return connection.execute("SELECT url FROM leader").fetchone()[0]

    def wait_until_second_leads(self):
        begun = time.monotonic()
        while self.leader() != self.second.server["url"]:
            assert time.monotonic() - begun < TAKEN_OVER_S, "nobody has taken over"
            time.sleep(0.05)

    def close(self):
        for made in reversed(self.products):
            made.call("server", "stop", "--now")
        self.relay.close()


@pytest.fixture
def pair(tmp_path, postgres_server):
    made = Pair(tmp_path, postgres_server.new_database())
    yield made
    made.close()


def result_of(product, invocation_id):
    """Of an invocation, once it has ended."""
    client = product.client()
    deadline = time.monotonic() + 30
    while True:
        path = path_of("invocations", invocation_id)
        info = client.call(wire.InvocationInfo, "GET", path)
        if info.finished_at or time.monotonic() > deadline:
            client.close()
            return info.status, info.result
        time.sleep(0.05)


@pytest.mark.slow
def test_another_takes_over_when_the_leader_is_killed(pair, tmp_path):
    sign = tmp_path / "sign"
    running = pair.first.json("invoke", "wait_for", str(sign), "--detach")["invocation_id"]
    os.kill(pair.first.server["pid"], signal.SIGKILL)
    pair.wait_until_second_leads()
    assert pair.second.run("invoke", "add", "1", "2") == "3\n"
    sign.touch()
    assert result_of(pair.second, running) == ("SUCCEEDED", '"seen"')


@pytest.mark.slow
def test_a_leader_that_hung_can_do_nothing_when_it_comes_back(pair):
    old = pair.first.server
    os.kill(old["pid"], signal.SIGSTOP)
    try:
        pair.wait_until_second_leads()
        assert pair.second.run("invoke", "add", "1", "2") == "3\n"
    finally:
        os.kill(old["pid"], signal.SIGCONT)
    deadline = time.monotonic() + TAKEN_OVER_S
    while (pair.first.folder / "home/server.json").exists():
        assert time.monotonic() < deadline, "the old leader does not stop"
        time.sleep(0.05)
    log = (pair.first.folder / "home/server/server.log").read_text()
    assert "another process leads by now" in log
    assert pair.second.run("invoke", "add", "2", "2") == "4\n"


def test_a_stop_lets_another_lead_at_once(pair):
    begun = time.monotonic()
    pair.first.run("server", "stop", "--now")
    pair.wait_until_second_leads()
    assert time.monotonic() - begun < PATIENCE_S
    assert pair.second.run("invoke", "add", "1", "2") == "3\n"


# --- the parts ---


def test_a_beat_that_stands_still_is_a_dead_leader():
    watch, seen = Watch(), Leader("x", 1, 5)
    assert not watch.is_free(seen, 100.0)
    assert not watch.is_free(seen, 100.0 + PATIENCE_S - 0.1)
    assert watch.is_free(seen, 100.0 + PATIENCE_S)
    assert not watch.is_free(Leader("x", 1, 6), 200.0)
    watch.forget()
    assert not watch.is_free(Leader("x", 1, 6), 300.0), (
        "the time before it was blind does not count"
    )
    assert watch.is_free(Leader(None, 2, 0), 300.0)


def test_only_one_takes_what_both_have_seen_and_the_other_changes_nothing(
    postgres_server, tmp_path
):
    url = postgres_server.new_database()
    first, second = (make_bench(tmp_path / name, database=url) for name in ("a", "b"))
    try:
        seen = first.look(leaders.read)
        epoch = first.do(leaders.take, seen, "first")
        assert (epoch, second.do(leaders.take, seen, "second")) == (seen.epoch + 1, None)

        def fence(connection):
            if leaders.current_epoch(connection) != epoch:
                raise ServerStopping("no")

        first.store.fence = fence
        first.deploy()
        assert second.do(leaders.take, second.look(leaders.read), "second") == epoch + 1
        with pytest.raises(ServerStopping):
            first.start()
    finally:
        first.close()
        second.close()
