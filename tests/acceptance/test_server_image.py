"""The control plane's image: built as its Dockerfile says, run as its users run it, restarted under a running function."""

import json
import socket
import time
from pathlib import Path

import docker
import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.hand_made_image import needs_engine
from tests.images.bench import missing
from tests.images.certificates import write_certificates

from multinode.wire import (
    Empty,
    InvocationInfo,
    StartAnswer,
    StartRequest,
    StopRequest,
    ValuesAnswer,
)

REPOSITORY = Path(__file__).parents[2]
BASE = "python:3.12-bookworm"
TAG = "multinode-server-tried"
MAX_ADDED_MIB = 160
"""Beyond its base image; uv is a third of it."""
MAIN = """
import time

import multinode

mn = multinode.Multinode()


@mn.function()
def count_slowly(bound):
    for i in range(bound):
        yield i
        time.sleep(0.5)
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def engine():
    needs_engine()
    client = docker.from_env(timeout=400)
    if not client.images.list(BASE):
        missing(f"{BASE} is not in the engine (`docker pull {BASE}`)")
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(engine):
    """Both stages get a name, so that both can be removed; the second build takes the first from the cache."""
    build = {
        "path": str(REPOSITORY),
        "dockerfile": "infra/server/Dockerfile",
        "buildargs": {"BASE": BASE},
        "forcerm": True,
    }
    engine.images.build(target="installed", tag=f"{TAG}:installed", **build)
    made, _ = engine.images.build(tag=f"{TAG}:latest", **build)
    yield made
    for name in ("latest", "installed"):
        engine.images.remove(f"{TAG}:{name}", force=True)


class ServerInContainer(DockerProduct):
    """The product whose server is a container with the engine's socket, on the machine's own network."""

    def __init__(self, folder, engine, image):
        super().__init__(folder)
        self.container = engine.containers.run(
            image,
            ["--runner", "docker"],
            detach=True,
            network_mode="host",
            group_add=[Path("/var/run/docker.sock").stat().st_gid],
            volumes={"/var/run/docker.sock": {"bind": "/var/run/docker.sock"}},
            environment={"MULTINODE_HOST": "127.0.0.1", "MULTINODE_PORT": str(free_port())},
        )

    def exec(self, *command):
        exit_code, output = self.container.exec_run(list(command))
        assert exit_code == 0, output.decode()
        return output.decode()

    @property
    def server(self):
        return json.loads(self.exec("cat", "server.json"))

    @property
    def label(self):
        return f"multinode.installation={self.exec('cat', 'server/installation')}"


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def wait_until_healthy(container):
    """Asks as the engine does, which would only begin after half a minute."""
    command = container.image.attrs["Config"]["Healthcheck"]["Test"][1:]
    deadline = time.monotonic() + 60
    while container.exec_run(command).exit_code != 0:
        assert time.monotonic() < deadline, container.logs().decode()
        time.sleep(0.2)


@pytest.fixture
def product(engine, image, tmp_path):
    made = ServerInContainer(tmp_path, engine, image)
    try:
        wait_until_healthy(made.container)
        label = made.label
        yield made
        made.client().call(Empty, "POST", "/v1/server/stop", StopRequest("now"))
        made.container.wait(timeout=60)
    finally:
        made.container.remove(force=True, v=True)
    for left in engine.images.list(filters={"label": label}):
        engine.images.remove(left.id, force=True)
    assert engine.containers.list(all=True, filters={"label": label}, ignore_removed=True) == []
    assert engine.networks.list(filters={"label": label}) == []


def test_the_image_is_small_and_has_no_more_than_it_needs(engine, image):
    added_mib = (image.attrs["Size"] - engine.images.get(BASE).attrs["Size"]) / 2**20
    assert added_mib < MAX_ADDED_MIB
    assert image.attrs["Config"]["User"] == "10001"
    looked_for = "import os; print(os.path.exists('/source'), os.path.exists('/opt/multinode/bin/pip'), os.getuid())"
    said = engine.containers.run(image, ["-c", looked_for], entrypoint="python", remove=True)
    assert said.decode().split() == ["False", "False", "10001"]


@pytest.fixture
def run_alone(engine, image):
    """Runs the image on addresses of its own, with processes."""
    made = []

    def run(*options, folder, limits=None, **variables):
        container = engine.containers.run(
            image,
            ["--runner", "process", "--allow-process", *options],
            detach=True,
            network_mode="none",
            environment=variables,
            volumes={str(folder): {"bind": "/etc/multinode", "mode": "ro"}},
            **(limits or {}),
        )
        made.append(container)
        return container

    yield run
    for container in made:
        container.remove(force=True, v=True)


def test_it_is_healthy_with_tls_and_refuses_to_do_without(run_alone, tmp_path):
    tls = tmp_path / "tls"
    tls.mkdir(mode=0o755)
    write_certificates(tls)
    (tls / "server.pem").chmod(0o644)  # the server is another user
    pem = "/etc/multinode/server.pem"
    wait_until_healthy(run_alone(folder=tls, MULTINODE_TLS_CERT=pem, MULTINODE_TLS_KEY=pem))
    wait_until_healthy(run_alone("--allow-http", folder=tls))
    refused = run_alone(folder=tls)
    assert refused.wait(timeout=60)["StatusCode"] == 2
    assert "--allow-http" in refused.logs().decode()


def test_it_runs_as_the_task_of_infra_aws(run_alone, tmp_path):
    """With a file system that it cannot write to but for its volume, without capabilities, below an init."""
    limits = {"read_only": True, "cap_drop": ["ALL"], "init": True}
    home = "/var/lib/multinode"
    task = run_alone("--allow-http", folder=tmp_path, limits=limits, TMPDIR=home)
    wait_until_healthy(task)
    assert "admin.key" in task.exec_run(["ls", f"{home}/server"]).output.decode()


def test_a_function_goes_on_while_the_container_of_the_server_is_made_anew(product):
    product.deploy(MAIN)
    client = product.client()
    path = "/v1/projects/shop/functions/count_slowly/invocations"
    started = client.call(StartAnswer, "POST", path, StartRequest(['[{"py/tuple":[16]},{}]']))
    url = f"/v1/invocations/{started.invocation_ids[0]}"
    values = client.call(ValuesAnswer, "GET", f"{url}/values?wait_s=30", wait_s=30)
    assert values.values
    product.container.restart(timeout=10)
    wait_until_healthy(product.container)
    deadline = time.monotonic() + 60
    client = product.client()
    while client.call(InvocationInfo, "GET", url).status == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ended = client.call(InvocationInfo, "GET", url)
    assert (ended.status, ended.result, ended.num_failed_attempts) == ("SUCCEEDED", "15", 0)
    values = client.call(ValuesAnswer, "GET", f"{url}/values")
    assert [value.value for value in values.values] == [str(i) for i in range(16)]
