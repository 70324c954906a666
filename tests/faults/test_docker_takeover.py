"""Two control planes with the docker runner on one PostgreSQL: a container survives the leader, and is the next one's."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import docker
import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.hand_made_image import needs_engine
from tests.postgres import PostgresServer

from multinode import wire
from multinode.client import path_of

MAIN = """
import os
import time
from multinode import Multinode

mn = Multinode()

@mn.function()
def add(a, b):
    return a + b

@mn.function()
def wait_for(path):
    print("begun", flush=True)
    while not os.path.exists(path):
        time.sleep(0.05)
    return "seen"
"""
SIGN = "/tmp/go"
"""In the container."""


class Member(DockerProduct):
    """One of the two: a home of its own, the data folder and the database of both."""

    def __init__(self, folder, name, database):
        super().__init__(folder / name)
        self.folder.mkdir()
        self.data = folder / "data"
        self.environ |= {"MULTINODE_DATABASE": database, "MULTINODE_DATA_DIR": str(self.data)}

    @property
    def label(self):
        return f"multinode.installation={(self.data / 'installation').read_text()}"

    def info(self, invocation_id):
        with closing(self.client()) as client:
            return client.call(wire.InvocationInfo, "GET", path_of("invocations", invocation_id))

    def until(self, invocation_id, fact):
        deadline = time.monotonic() + 60
        while not fact(found := self.info(invocation_id)):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found


@pytest.fixture
def engine():
    needs_engine()
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def members(engine, tmp_path, postgres_server: PostgresServer):
    """The leader, and who follows it. Nothing is left in the engine."""
    database = postgres_server.new_database()
    both = [Member(tmp_path, name, database) for name in ("a", "b")]
    for each in both:
        each.run("server", "start", "--port", "0")
    yield both
    for each in reversed(both):
        each.call("server", "stop", "--now")
    label = {"label": both[0].label}
    for image in engine.images.list(filters=label):
        engine.images.remove(image.id, force=True)
    left = engine.containers.list(all=True, filters=label, ignore_removed=True)
    for container in left:
        container.remove(force=True)
    assert left == []
    assert engine.networks.list(filters=label) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_container_of_a_killed_leader_is_adopted(members, engine):
    leader, follower = members
    follower.deploy(MAIN)
    assert follower.run("invoke", "shop/add", "1", "2") == "3\n"
    running = follower.run("invoke", "shop/wait_for", SIGN, "--detach").strip()
    follower.until(running, lambda info: info.status == "RUNNING")
    label = {"label": leader.label}
    (container,) = engine.containers.list(filters=label, ignore_removed=True)
    os.kill(leader.server["pid"], signal.SIGKILL)
    with closing(follower.client()) as client:  # this waits for somebody to lead
        known = client.call(wire.ServerInfo, "GET", path_of("server"), wait_s=20)
    assert known.workers == 1, "who leads now has adopted it"
    assert [each.id for each in engine.containers.list(filters=label)] == [container.id]
    assert container.exec_run(["touch", SIGN]).exit_code == 0
    ended = follower.until(running, lambda info: info.terminated)
    assert (ended.status, ended.result, ended.num_failed_attempts) == ("SUCCEEDED", '"seen"', 0)
    assert follower.run("logs", running) == "begun\n"
    assert engine.containers.list(all=True, filters=label, ignore_removed=True) == []
    assert follower.run("invoke", "shop/add", "3", "4") == "7\n"
