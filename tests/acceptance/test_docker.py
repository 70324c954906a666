"""The product with containers: the real command, a real server with the ``docker`` runner, a real engine."""

import hashlib
import io
import json
import tarfile

import docker
import pytest
from tests.acceptance.product import Product
from tests.hand_made_image import build_image, needs_engine

from multinode.distribution import sdk_digest
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    DescribeAnswer,
    DescribeRequest,
    Empty,
    EnvironmentInfo,
    EnvironmentSpec,
    RegisterAnswer,
    RegisterRequest,
    loads,
)

MAIN = """
import os

import multinode

mn = multinode.Multinode()


@mn.function(memory="64 MiB")
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


class DockerProduct(Product):
    """A server with the docker runner. ``deploy`` is by hand, with an image made by hand."""

    def deploy(self, main, dotenv=None, project="shop"):
        client = self.client()
        spec = EnvironmentSpec(python="3.8")
        request = BuildRequest(spec, sdk_digest=sdk_digest())
        path = f"/v1/projects/{project}"
        lines = client.stream("POST", f"{path}/environments", request)
        event = [loads(BuildEvent, line) for line in lines if line.strip()][-1]
        if event.environment is None:
            order = event.image_order
            report = build_image(order, spec)
            event = BuildEvent(
                environment=client.call(
                    EnvironmentInfo, "PUT", f"{path}/environments/{order.digest}", report
                )
            )
        archive = bundle(main)
        digest = hashlib.sha256(archive).hexdigest()
        client.call(Empty, "PUT", f"/v1/bundles/{digest}", archive)
        environment, dotenv = event.environment.digest, dotenv or {}
        described = client.call(
            DescribeAnswer,
            "POST",
            f"{path}/describe",
            DescribeRequest(environment, digest, dotenv),
            wait_s=60,
        )
        return client.call(
            RegisterAnswer,
            "POST",
            f"{path}/versions",
            RegisterRequest(environment, digest, dotenv, described.functions, create=True),
        )

    @property
    def label(self):
        installation = (self.folder / "home" / "server" / "installation").read_text()
        return f"multinode.installation={installation}"


def bundle(main):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        item = tarfile.TarInfo("main.py")
        item.size = len(main.encode())
        tar.addfile(item, io.BytesIO(main.encode()))
    return made.getvalue()


@pytest.fixture(scope="module")
def engine():
    needs_engine()
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def product(engine, tmp_path_factory):
    made = DockerProduct(tmp_path_factory.mktemp("docker"))
    made.environ["MULTINODE_RUNNER"] = "docker"
    made.run("server", "start")
    yield made
    made.run("server", "stop", "--now")
    label = {"label": made.label}
    containers = engine.containers.list(all=True, filters=label)
    for network in engine.networks.list(filters=label):
        network.remove()
    for image in engine.images.list(filters=label):
        engine.images.remove(image.id, force=True)
    assert containers == []


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
