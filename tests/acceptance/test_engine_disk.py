"""A Docker engine whose disk is full: what is said, that nothing is left, and that all goes on once there is room."""

import json
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.hand_made_image import BASE
from tests.images.bench import Bench
from tests.own_engine import OwnEngine, needs_own_engine

from multinode.errors import EnvironmentBuildFailed, StorageFull
from multinode.wire import EnvironmentSpec, InvocationInfo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MAIN = """
import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    return a + b
"""
DISK_MIB = 900


class SmallEngine(OwnEngine):
    """An engine on a disk of its own."""

    @property
    def data(self):
        return self.folder / "data"

    def start(self):
        if not self.data.is_mount():
            self.data.mkdir()
            size = ["-o", f"size={DISK_MIB}m"]
            subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", self.data], check=True)
        super().start()

    def fill(self):
        """Leaves not a byte of room."""
        with (self.data / "filler").open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        filler.write(b"\0" * size)

    def make_room(self):
        (self.data / "filler").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def engine():
    needs_own_engine()
    folder = Path(tempfile.mkdtemp(prefix="mn-"))  # short, as the socket's path has to be
    made = SmallEngine(folder)
    try:
        made.start()
        made.load(BASE)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


@pytest.fixture
def full(engine):
    """Fills and makes room again."""
    yield engine
    engine.make_room()


@pytest.fixture(scope="module")
def product(engine, tmp_path_factory):
    made = DockerProduct(tmp_path_factory.mktemp("disk"), engine.url)
    made.run("server", "start")
    try:
        made.deploy(MAIN)
        yield made
    finally:
        engine.make_room()
        made.run("server", "stop", "--now")


def info(product, invocation_id):
    return product.client().call(InvocationInfo, "GET", f"/v1/invocations/{invocation_id}")


def wait_for(fact, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_an_invocation_waits_for_room_says_so_and_then_runs(product, full):
    assert json.loads(product.run("invoke", "shop/add", "1", "2")) == 3
    wait_for(lambda: not full.client.api.containers(all=True))
    before = full.things()
    full.fill()
    invocation_id = product.run("invoke", "shop/add", "3", "4", "--detach").strip()

    def reason():
        found = info(product, invocation_id)
        assert found.status == "PENDING", found
        return "disk is full" in (found.pending_reason or "") and found.pending_reason

    told = wait_for(reason)
    assert "multinode server gc" in told
    full.make_room()
    wait_for(lambda: info(product, invocation_id).terminated)
    found = info(product, invocation_id)
    assert (found.status, found.num_failed_attempts) == ("SUCCEEDED", 0)
    wait_for(lambda: not full.client.api.containers(all=True))
    assert full.things() == before


def test_a_build_without_room_says_so_and_leaves_nothing(full):
    bench = Bench(full.client.api)
    with bench.open():
        spec = EnvironmentSpec(base_image=bench.base())
        before = full.things()
        full.fill()
        with pytest.raises(StorageFull, match="The Docker engine's disk is full") as raised:
            bench.make(spec, DOCKER_HOST=full.url)
        assert "docker image prune" in raised.value.hint
        assert full.things() == before
        full.make_room()
        # As far as can be without a network: pip is reached, and finds no index.
        with pytest.raises(EnvironmentBuildFailed, match="index cannot be reached"):
            bench.make(spec, DOCKER_HOST=full.url, PIP_RETRIES="0")


def test_doctor_says_that_there_is_too_little_room_on_both_sides(product):
    product.write({})
    done = product.call("doctor", "--json")
    found = {item["check"]: item for item in json.loads(done.stdout)["data"]}
    assert done.returncode == 1
    for check in ("Docker's disk", "engine's disk"):
        assert found[check]["state"] == "FAIL"
        assert "docker system prune" in found[check]["cure"]


def test_doctor_says_where_a_base_image_is_not_to_be_had(product):
    toml = '[environment]\nbase_image = "127.0.0.1:1/nowhere/python:3"\n'
    (product.folder / "multinode.toml").write_text(toml)
    items = json.loads(product.call("doctor", "--json").stdout)["data"]
    found = {item["check"]: item for item in items}
    assert (found["base image"]["state"], found["engine's base image"]["state"]) == ("note", "note")
    assert "its registry cannot be reached" in found["base image"]["finding"]
    assert "docker load" in found["engine's base image"]["cure"]


def test_an_image_that_somebody_removed_is_told_and_made_anew_by_a_deploy(product, engine):
    wait_for(lambda: not engine.client.api.containers(all=True))
    for image in engine.client.api.images(filters={"label": product.label}):
        engine.client.api.remove_image(image["Id"], force=True)
    invocation_id = product.run("invoke", "shop/add", "5", "6", "--detach").strip()
    wait_for(lambda: "Deploy again" in (info(product, invocation_id).pending_reason or ""))
    product.deploy(MAIN)
    wait_for(lambda: info(product, invocation_id).terminated)
    assert info(product, invocation_id).status == "SUCCEEDED"
