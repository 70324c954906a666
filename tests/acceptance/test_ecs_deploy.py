"""Deploying to the ``ecs`` runner: the real command and server, the tests' stand-in for AWS, whose tasks really run.

The server alone has AWS's variables.
"""

from __future__ import annotations

import os
import socket
import time

import pytest
from tests.acceptance.product import Product

from multinode.wire import InvocationDetail, VersionInfo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUILD_S = 300.0
MAIN = """
import os

import multinode

mn = multinode.Multinode()


@mn.function(cpu=0.3, memory="300 MiB")
def where():
    print("in a task")
    return os.environ.get("AWS_EXECUTION_ENV")


@mn.function(cpu=16, memory="64 GiB")
def largest():
    return 1
"""


@pytest.fixture(scope="module")
def product(engine, aws, tmp_path_factory):
    made = Product(tmp_path_factory.mktemp("product"))
    for name in [each for each in made.environ if each.startswith("AWS_")]:
        del made.environ[name]
    made.environ["DOCKER_BUILDKIT"] = "0"
    started = made.call("server", "start", **settings(aws, engine))
    assert started.returncode == 0, started.stderr
    yield made
    made.run("server", "stop", "--now")
    for image in engine.images.list(filters={"label": f"multinode.installation=t{aws.mark}"}):
        engine.images.remove(image.id, force=True)


def settings(aws, engine):
    """Those of the server. Its name in the cluster is the mark of the stand-in."""
    cluster = {f"MULTINODE_ECS_{name.upper()}": text for name, text in aws.make_cluster().items()}
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    with socket.create_server((gateway, 0)) as free:
        port = free.getsockname()[1]
    return {
        **aws.environ,
        **cluster,
        "MULTINODE_RUNNER": "ecs",
        "MULTINODE_ECS_NAME": f"t{aws.mark}",
        "MULTINODE_REGISTRY": "ecr:multinode",
        "MULTINODE_REGISTRY_CREATE": "1",
        "MULTINODE_WORKER_URL": f"http://{gateway}:{port}",
    }


@pytest.fixture(scope="module")
def said(product, aws):
    """What the first deploy said."""
    return deploy(product, "shop", aws.mark)


def deploy(product, project, requirement):
    files = {"tasks/main.py": MAIN, "tasks/requirements.txt": f"# {requirement}\n"}
    product.write(files, project=project, python="3.8")
    done = product.call("deploy", timeout_s=BUILD_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def image_of(product, project):
    path = f"/v1/projects/{project}/versions/latest"
    return product.client().call(VersionInfo, "GET", path).environment.image


def test_what_is_asked_for_and_what_is_paid_are_shown(product, said):
    assert "  where  cpu 0.3, memory 300 MiB (paid: 0.5 vCPU and 1 GiB)" in said
    assert "  largest  cpu 16, memory 64 GiB (paid: 16 vCPU and 64 GiB)" in said
    told = product.json("describe", "shop")["version"]["sizes"]
    assert told["where"] == {"cpu": 0.5, "memory_mib": 1024}


def test_a_task_runs_the_image_that_was_pushed_by_its_digest(product, aws, said):
    assert product.run("invoke", "shop/where") == "AWS_ECS_FARGATE\n"
    image = image_of(product, "shop")
    assert image.startswith(f"{aws.registry}/multinode@sha256:")
    sizes = {
        (item["cpu"], item["memory"], item["containerDefinitions"][0]["image"])
        for item in aws.calls("RegisterTaskDefinition")
    }
    assert ("512", "1024", image) in sizes


def test_a_task_costs_its_size_from_its_pull_on(product, said):
    ended = product.json("invoke", "shop/where")["invocation_id"]
    path = f"/v1/invocations/{ended}/detail"
    deadline = time.monotonic() + 60
    while (cost := product.client().call(InvocationDetail, "GET", path).executions[0].cost) is None:
        assert time.monotonic() < deadline, "its worker is not gone"
    assert (cost.cpu, cost.memory_mib, cost.tariff) == (0.5, 1024, "x86_64")
    assert 60 <= cost.billed_s < 600
    assert cost.cost == pytest.approx((0.5 * 0.04048 + 0.004445) * cost.billed_s / 3600)
    assert " USD: " in product.run("describe", ended)
    assert product.json("cost")["paid_executions"] >= 1
    most = product.json("invoke", "shop/largest", "--estimate")["most"]["cost"]
    assert most == pytest.approx(16 * 0.04048 + 64 * 0.004445), "an hour is its timeout"


def test_nothing_is_pushed_again(product, aws, said):
    before = len(aws.calls("GetAuthorizationToken"))
    assert "Unchanged" in deploy(product, "shop", aws.mark)
    assert len(aws.calls("GetAuthorizationToken")) == before


def test_what_no_version_uses_is_deleted_in_ecr(product, aws):
    deploy(product, "short", f"{aws.mark} of a project that is removed again")
    image = image_of(product, "short")
    product.run("undeploy", "short", "-y")
    for path in (product.folder / "home/server/images").glob("*.json"):
        if image in path.read_text():
            os.utime(path, (0, 0))
    items = product.json("server", "gc")["items"]
    assert "environment" in {item["kind"] for item in items}
    details = aws.client("ecr").describe_images(repositoryName="multinode")["imageDetails"]
    assert image.partition("@")[2] not in {each["imageDigest"] for each in details}
