"""Two control planes on one PostgreSQL: another takes over when the leader dies or hangs, and the old one can do nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.acceptance.product import Product
from tests.control_plane.bench import make_bench
from tests.postgres import Relay

from multinode import wire
from multinode.client import Client, path_of
from multinode.errors import NotLoggedIn, ServerStopping
from multinode_control_plane.leadership import PATIENCE_S, Watch
from multinode_control_plane.runners.worker_processes import is_living
from multinode_control_plane.service import leaders
from multinode_control_plane.service.leaders import Leader

MAIN = """
import time
from pathlib import Path
from multinode import Multinode

mn = Multinode()

@mn.function()
def add(a, b):
    print("adding")
    return a + b

@mn.function()
def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.02)
    return "seen"
"""
TAKEN_OVER_S = 40.0
SOON_S = 4.5
"""In which a process ends; after 5 s uvicorn cuts off what is open."""
THREE = '[{"py/tuple":[1,2]},{}]'
"""The input whose sum it is."""


class Pair:
    """Two homes on one database, which share a data folder. Workers reach the second: it passes on what is the leader's."""

    def __init__(self, folder, url, *, shares_folder=True):
        self.products = []
        self.url = url
        self.relay = Relay(9)
        for name in ("a", "b"):
            made = Product(folder / name)
            made.folder.mkdir()
            made.environ |= {
                "MULTINODE_DATABASE": url,
                "MULTINODE_DATA_DIR": str(folder / ("data" if shares_folder else f"data-{name}")),
                "MULTINODE_WORKER_URL": f"http://127.0.0.1:{self.relay.port}",
            }
            made.write({"tasks/main.py": MAIN})
            self.products.append(made)
        self.first, self.second = self.products
        self.shares_folder = shares_folder

    def start(self):
        self.first.run("server", "start", "--port", "0")
        if not self.shares_folder:  # what whoever sets them up has to see to
            one, other = (Path(each.environ["MULTINODE_DATA_DIR"]) for each in self.products)
            other.mkdir()
            shutil.copy(one / "secret.key", other)
        self.second.run("server", "start", "--port", "0")
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
    try:
        made.start()
        yield made
    finally:
        made.close()


def ask_for(seconds, client):
    """Over and over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        client.call(list[wire.ProjectInfo], "GET", "/v1/projects")


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


def log_of(product):
    """Of its last process."""
    (path,) = Path(product.environ["MULTINODE_HOME"]).rglob("server.log")
    return path.read_text()


@pytest.mark.slow
def test_both_serve_and_hear_each_other(pair, tmp_path):
    leader, follower = pair.first.client(), pair.second.client()
    sign = tmp_path / "sign"
    running = pair.second.json("invoke", "wait_for", str(sign), "--detach")["invocation_id"]
    path = path_of("invocations", running)
    for client in (leader, follower):
        while (seen := client.call(wire.InvocationInfo, "GET", path)).status != "RUNNING":
            time.sleep(0.02)
    # Who waits at the one wakes when the other, or a worker that the other has heard, changes something.
    waiting = f"{path}?revision={seen.revision}&wait_s=20"
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        found = [
            threads.submit(client.call, wire.InvocationInfo, "GET", waiting, wait_s=20)
            for client in (leader, follower)
        ]
        time.sleep(0.5)
        follower.call(wire.InvocationInfo, "POST", f"{path}/cancel")
        assert {each.result().status for each in found} <= {"CANCELLING", "CANCELLED"}
    assert time.monotonic() - begun < 18
    assert result_of(pair.first, running)[0] == "CANCELLED"
    assert pair.second.run("invoke", "add", "1", "2") == "3\n"
    # What only the leader can answer comes through the follower too.
    said = pair.second.json("invoke", "add", "3", "4")
    assert "adding" in pair.second.run("logs", said["invocation_id"])
    # A key that is revoked at one is void at the other.
    made = pair.second.json("key", "create", "short", "--role", "read")
    with closing(Client(pair.first.server["url"], made["key"])) as short:
        short.call(list[wire.ProjectInfo], "GET", "/v1/projects")
        pair.second.run("key", "revoke", "short")
        with pytest.raises(NotLoggedIn):
            ask_for(5, short)
    for client in (leader, follower):
        client.close()


@pytest.mark.slow
def test_a_leader_finds_what_it_did_not_hear(pair, postgres_server):
    with closing(pair.first.client()) as client:
        path = path_of("projects", "shop", "functions", "add", "invocations")
        later = wire.StartRequest(inputs=[THREE], delay_s=3600.0)
        client.call(wire.StartAnswer, "POST", path, later)  # what the leader's timer is set to
    with closing(pair.second.client()) as client:
        listening = (
            "FROM pg_stat_activity "
            f"WHERE application_name LIKE 'multinode listener %' AND datname = '{urlsplit(pair.url).path[1:]}'"
        )
        while len(postgres_server.execute(f"SELECT pid {listening}")) < len(pair.products):
            time.sleep(0.01)
        postgres_server.execute(f"SELECT pg_terminate_backend(pid) {listening}")
        soon = wire.StartRequest(inputs=[THREE], delay_s=1.0)
        told = client.call(wire.StartAnswer, "POST", path, soon)
    assert result_of(pair.second, told.invocation_ids[0]) == ("SUCCEEDED", "3")
    for product in pair.products:
        log = log_of(product)
        assert "is not heard" in log
        assert "Traceback" not in log


@pytest.mark.slow
def test_a_follower_that_stops_lets_workers_go(pair, tmp_path):
    sign = tmp_path / "sign"
    running = pair.first.json("invoke", "wait_for", str(sign), "--detach")["invocation_id"]
    path = path_of("invocations", running)
    with closing(pair.first.client()) as client:
        while client.call(wire.InvocationInfo, "GET", path).status != "RUNNING":
            time.sleep(0.02)
    time.sleep(1)  # its worker's watch is open, through the follower
    pid, began = pair.second.server["pid"], time.monotonic()
    os.kill(pid, signal.SIGTERM)
    while is_living(pid):
        assert time.monotonic() - began < SOON_S, log_of(pair.second)
        time.sleep(0.02)
    assert "Traceback" not in log_of(pair.second)
    pair.relay.lead_to(urlsplit(pair.first.server["url"]).port)
    sign.touch()
    assert result_of(pair.first, running) == ("SUCCEEDED", '"seen"')


@pytest.mark.slow
def test_another_takes_over_when_the_leader_is_killed(pair, tmp_path):
    sign = tmp_path / "sign"
    running = pair.first.json("invoke", "wait_for", str(sign), "--detach")["invocation_id"]
    os.kill(pair.first.server["pid"], signal.SIGKILL)
    began = time.monotonic()
    with closing(pair.second.client()) as client:  # only a leader can answer: it waits for one
        client.call(wire.ServerInfo, "GET", path_of("server"), wait_s=TAKEN_OVER_S)
    assert time.monotonic() - began < TAKEN_OVER_S
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
    pair.first.run("server", "stop", "--now")
    begun = time.monotonic()
    pair.wait_until_second_leads()
    assert time.monotonic() - begun < PATIENCE_S
    assert pair.second.run("invoke", "add", "1", "2") == "3\n"


@pytest.mark.slow
def test_a_leader_on_another_machine_has_the_bundles(tmp_path, postgres_server):
    pair = Pair(tmp_path, postgres_server.new_database(), shares_folder=False)
    try:
        pair.start()
        os.kill(pair.first.server["pid"], signal.SIGKILL)
        pair.wait_until_second_leads()
        bundles = list((tmp_path / "data-a/bundles").iterdir())
        deadline = time.monotonic() + TAKEN_OVER_S
        while [path.name for path in (tmp_path / "data-b/bundles").iterdir()] != [bundles[0].name]:
            assert time.monotonic() < deadline, "it is not fetched"
            time.sleep(0.05)
        assert not pair.second.json("deploy")["created"]  # makes the environment
        assert pair.second.run("invoke", "add", "1", "2") == "3\n"
    finally:
        pair.close()


# --- the parts ---


def test_a_beat_that_stands_still_is_a_dead_leader():
    watch, seen = Watch(), Leader("x", 1, 5)
    assert not watch.is_free(seen, 100.0)
    assert not watch.is_free(seen, 100.0 + PATIENCE_S - 0.1)
    assert watch.is_free(seen, 100.0 + PATIENCE_S)
    assert not watch.is_free(Leader("x", 1, 6), 200.0)
    watch.leave_out(90.0)
    assert not watch.is_free(Leader("x", 1, 6), 200.0 + 90.0 + PATIENCE_S - 0.1)
    assert watch.is_free(Leader("x", 1, 6), 200.0 + 90.0 + PATIENCE_S)
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
