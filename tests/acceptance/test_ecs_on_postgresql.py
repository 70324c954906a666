"""Two control planes on PostgreSQL behind one address, as `infra/aws` makes them, and functions that are tasks; one is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.acceptance.ecs_product import EcsProduct, gateway
from tests.hand_made_image import needs_engine
from tests.postgres import PostgresServer, Relay

from multinode import wire
from multinode.client import path_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KEYS = "multinode/key-ring"
MAIN = """
import os
import time
from pathlib import Path
from multinode import Multinode

mn = Multinode()

@mn.function()
def wait_for(path):
    print("begun", flush=True)
    yield "waiting"
    while not Path(path).exists():
        time.sleep(0.05)
    yield "seen" + os.environ["MARK"]
"""


class Pair:
    """Each has a home and a data folder of its own. ``address`` is where tasks go: a load balancer's, which leads to one of them."""

    def __init__(self, folder: Path, aws: Any, place: dict[str, str], database: str) -> None:
        self.address = Relay(9, gateway())
        shared = {
            "MULTINODE_DATABASE": database,
            "MULTINODE_ECS_NAME": "pair",
            "MULTINODE_SECRET_KEY_FROM": f"aws:{KEYS}",
            "MULTINODE_WORKER_URL": f"http://{gateway()}:{self.address.port}",
        }
        self.members = [EcsProduct(folder / name, aws, place) for name in ("a", "b")]
        for each in self.members:
            each.environ |= shared
            each.write({"tasks/main.py": MAIN, "tasks/.env": "MARK=!\n"})

    def start(self) -> None:
        for each in self.members:
            each.run("server", "start", "--port", "0")
        self.lead_to(self.members[0])

    def lead_to(self, member: EcsProduct) -> None:
        port = urlsplit(member.server["url"]).port
        assert port is not None
        self.address.lead_to(port)

    def close(self) -> None:
        for each in reversed(self.members):
            each.call("server", "stop", "--now")
        self.address.close()


@pytest.fixture
def pair(
    tmp_path: Path, postgres_server: PostgresServer, request: pytest.FixtureRequest
) -> Iterator[Pair]:
    needs_engine()
    aws, place = request.getfixturevalue("tasks_of_all")
    aws.client("secretsmanager").create_secret(Name=KEYS)  # empty, as Terraform makes it
    tmp_path.chmod(0o777)  # a task runs as another user
    made = Pair(tmp_path, aws, place, postgres_server.new_database(empty=True))
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_task_of_a_killed_leader_goes_on_with_the_next(pair: Pair, tmp_path: Path) -> None:
    leader, follower = pair.members
    assert follower.json("deploy")["created"]
    running = follower.run("invoke", "wait_for", str(tmp_path / "go"), "--detach").strip()
    path = path_of("invocations", running, "values")
    with closing(follower.client()) as client:
        query = f"{path}?after=0&wait_s=25"
        assert client.call(wire.ValuesAnswer, "GET", query, wait_s=25).values
    os.kill(leader.server["pid"], signal.SIGKILL)
    pair.lead_to(follower)
    with closing(follower.client()) as client:  # this waits for somebody to lead
        known = client.call(wire.ServerInfo, "GET", path_of("server"), wait_s=20)
    assert known.workers == 1, "who leads now has adopted it"
    (tmp_path / "go").touch()
    assert follower.run("logs", running, "--follow") == "begun\n"
    assert follower.run("result", running) == "seen!\n"
    (attempt,) = follower.json("describe", running)["executions"]
    assert attempt["outcome"] == "succeeded"
    follower.run("undeploy", "shop", "-y")
    while follower.workers_left():  # a task stops a moment after its container
        time.sleep(0.1)
