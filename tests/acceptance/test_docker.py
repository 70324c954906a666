"""The product with containers: the real command, a real server with the ``docker`` runner, a real engine."""

import json
import os
import signal
import time
import urllib.error
import urllib.request

import docker
import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.hand_made_image import needs_engine

from multinode.wire import InvocationInfo
from multinode_control_plane.runners.worker_processes import is_living

MAIN = """
import os
import time

import multinode

mn = multinode.Multinode()


@mn.function(memory="64 MiB")
def fill(mib):
    return len(bytearray(b"x") * (mib * 1024 * 1024))


@mn.function()
def sleep(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    return "slept"


@mn.function()
def start_a_sibling():
    return add.call_remote(3, 4)


@mn.function()
def add(a, b):
    print("adding")
    return a + b


@mn.function()
def whoami():
    status = open("/proc/self/status").read()
    return {
        "uid": os.getuid(),
        "caps": [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")],
        "privileges": [line.split()[1] for line in status.splitlines() if "NoNewPrivs" in line],
        "secret": os.environ["SECRET"],
    }
"""


@pytest.fixture(scope="module")
def engine():
    needs_engine()
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def product(engine, tmp_path_factory):
    made = DockerProduct(tmp_path_factory.mktemp("docker"))
    made.run("server", "start")
    yield made
    made.run("server", "stop", "--now")
    label = {"label": made.label}
    for image in engine.images.list(filters=label):
        engine.images.remove(image.id, force=True)
    assert engine.containers.list(all=True, filters=label, ignore_removed=True) == []
    assert engine.networks.list(filters=label) == []


def test_a_function_runs_in_a_container_of_its_own(product):
    product.deploy(MAIN, {"SECRET": "hidden"})
    assert json.loads(product.run("invoke", "shop/add", "1", "2")) == 3
    done = json.loads(product.run("invoke", "shop/whoami"))
    assert done == {
        "uid": 1000,
        "caps": ["0000000000000000"],
        "privileges": ["1"],
        "secret": "hidden",
    }


@pytest.fixture
def deployed(product):
    product.deploy(MAIN, {"SECRET": "hidden"})
    return product


def wait_for(fact, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def info(product, invocation_id):
    return product.client().call(InvocationInfo, "GET", f"/v1/invocations/{invocation_id}")


def start_sleeping(product, seconds):
    invocation_id = product.run("invoke", "shop/sleep", str(seconds), "--detach").strip()
    wait_for(lambda: "begun" in product.run("logs", invocation_id))
    return invocation_id


def test_status_says_which_runner_and_what_it_enforces(product):
    status = product.json("server", "status")
    assert (status["runner"], status["enforces"]) == ("docker", ["cpu", "memory"])


def test_doctor_looks_at_the_engine_and_tries_a_container(deployed, engine):
    found = {item["check"]: item["state"] for item in deployed.json("doctor")}
    assert (found["engine"], found["engine's disk"], found["containers"]) == ("ok", "ok", "ok")
    label = {"label": deployed.label, "name": "multinode-doctor"}
    assert engine.containers.list(all=True, filters=label, ignore_removed=True) == []


def test_functions_run_after_a_stop_and_a_start(deployed):
    """The network goes with the server, and comes back with the same addresses."""
    deployed.run("server", "stop", "--now")
    deployed.run("server", "start")
    assert json.loads(deployed.run("invoke", "shop/add", "1", "2")) == 3


def test_memory_over_its_limit_is_told_with_the_limit(deployed):
    done = deployed.call("invoke", "shop/fill", "200")
    assert done.returncode == 1
    assert "killed: out of memory at its limit of 64 MiB" in done.stderr


def test_a_function_starts_another_from_inside_of_its_container(deployed):
    assert json.loads(deployed.run("invoke", "shop/start_a_sibling")) == 7


def test_a_cancelled_function_ends_and_its_container_is_removed(deployed, engine):
    invocation_id = start_sleeping(deployed, 600)
    deployed.run("cancel", invocation_id)
    assert wait_for(lambda: info(deployed, invocation_id).terminated)
    found = info(deployed, invocation_id)
    assert (found.status, found.error) == ("CANCELLED", None)
    label = {"label": [deployed.label, "multinode.worker"]}
    wait_for(lambda: not engine.containers.list(all=True, filters=label, ignore_removed=True))


def test_a_container_lives_on_when_the_control_plane_is_killed(deployed):
    invocation_id = start_sleeping(deployed, 4)
    pid = deployed.server["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_living(pid))
    deployed.run("server", "start")
    wait_for(lambda: info(deployed, invocation_id).finished_at)
    found = info(deployed, invocation_id)
    assert (found.status, found.error, found.num_failed_attempts) == ("SUCCEEDED", None, 0)
    assert deployed.run("logs", invocation_id) == "begun\n"


def test_only_what_workers_need_is_answered_where_they_reach_the_server(deployed):
    door = json.loads((deployed.folder / "home" / "server" / "local.json").read_text())
    network = json.loads((deployed.folder / "home" / "server" / "network.json").read_text())
    gateway = network["subnet"].rpartition(".")[0] + ".1"
    url = f"http://{gateway}:{door['worker_port']}"
    key = deployed.server["key"]
    answers = {}
    for path in ("/healthz", "/v1/projects", "/v1/keys", "/v1/server", "/v1/invocations"):
        request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {key}"})
        try:
            answers[path] = urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            answers[path] = error.code
    assert answers == {
        "/healthz": 200,
        "/v1/projects": 404,
        "/v1/keys": 404,
        "/v1/server": 404,
        "/v1/invocations": 200,
    }


def test_what_no_version_uses_is_collected_and_no_image_is_left(deployed, engine):
    deployed.run("undeploy", "shop", "-y")
    label = {"label": deployed.label}
    assert own(deployed.json("server", "gc")["items"]) == [], "a deploy may be under way"
    for path in (deployed.folder / "home" / "server").glob("*/*.json"):
        os.utime(path, (0, 0))
    planned = own(deployed.json("server", "gc", "--dry-run")["items"])
    assert engine.images.list(filters=label)
    assert own(deployed.json("server", "gc")["items"]) == planned
    assert {item["kind"] for item in planned} == {"environment"}
    assert planned[0]["reason"].startswith("not used for ")
    assert not engine.images.list(filters=label)


def own(items):
    """Without what builds of others have left in the engine."""
    return [item for item in items if item["kind"] != "layers"]
