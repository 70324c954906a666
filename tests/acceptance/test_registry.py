"""A server with a registry, and an engine that comes by its images there alone."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest
from docker.errors import APIError
from tests.acceptance.docker_product import DockerProduct
from tests.images.bench import registry_process
from tests.own_engine import own_engine

from multinode.wire import InvocationInfo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MAIN = """
import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    return a + b
"""
USER, PASSWORD = "pusher", "registry-password"


@pytest.fixture(scope="module")
def engine():
    with own_engine() as made:
        yield made


@pytest.fixture
def registry(tmp_path):
    """Its address, and the stack that ends it."""
    with ExitStack() as stack:
        serving = registry_process(tmp_path, {USER: PASSWORD}, allows_removal=True)
        yield stack.enter_context(serving), stack


@pytest.fixture
def product(engine, registry, tmp_path):
    made = DockerProduct(tmp_path / "product", engine.url)
    made.folder.mkdir()
    made.environ["MULTINODE_REGISTRY"] = f"{registry[0]}/team/envs"
    made.environ["MULTINODE_REGISTRY_USERNAME"] = USER
    made.environ["MULTINODE_REGISTRY_KEY"] = PASSWORD
    made.run("server", "start")
    try:
        made.deploy(MAIN)
        yield made
    finally:
        made.run("server", "stop", "--now")


def forget_images(product, engine):
    """Removes the installation's images, once what the deploy ran from them is gone."""

    def gone():
        images = engine.client.api.images(filters={"label": product.label})
        try:
            for image in images:
                engine.client.api.remove_image(image["Id"], force=True)
        except APIError as error:
            if error.status_code != 409:
                raise
            return False
        return True

    wait_for(gone)


def wait_for(fact, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def pushed(address, digest):
    """The status with which the registry answers for a manifest."""
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    url = f"http://{address}/v2/team/envs/manifests/{digest}"
    accept = "application/vnd.docker.distribution.manifest.v2+json"
    headers = {"Authorization": f"Basic {login}", "Accept": accept}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def environment_file(product):
    (path,) = (product.folder / "home/server/images").glob("*.json")
    return path


def test_an_engine_that_lacks_the_image_pulls_it_by_digest(product, engine):
    forget_images(product, engine)
    done = product.call("invoke", "shop/add", "1", "2")
    assert (json.loads(done.stdout), done.returncode) == (3, 0)
    assert "PENDING: pulling image" in done.stderr
    (image,) = engine.client.api.images(filters={"label": product.label})
    known = json.loads(environment_file(product).read_text())["image"]
    assert known in image["RepoDigests"]
    found = {item["check"]: item["state"] for item in product.json("doctor")}
    assert (found["registry"], found["containers"]) == ("ok", "ok")


def test_what_is_collected_goes_from_engine_and_registry(product, engine, registry):
    digest = json.loads(environment_file(product).read_text())["image"].partition("@")[2]
    assert pushed(registry[0], digest) == 200
    product.run("undeploy", "shop", "-y")
    os.utime(environment_file(product), (0, 0))
    items = [item for item in product.json("server", "gc")["items"] if item["kind"] != "layers"]
    assert [(item["kind"], item["note"]) for item in items] == [("environment", "")]
    assert pushed(registry[0], digest) == 404
    assert engine.client.api.images(filters={"label": product.label}) == []


def test_while_the_registry_is_away_an_invocation_waits_and_says_so(product, engine, registry):
    forget_images(product, engine)
    registry[1].close()
    invocation_id = product.run("invoke", "shop/add", "1", "2", "--detach").strip()

    def reason():
        path = f"/v1/invocations/{invocation_id}"
        found = product.client().call(InvocationInfo, "GET", path)
        return "could not be pulled" in (found.pending_reason or "") and found.pending_reason

    told = wait_for(reason)
    assert "connection refused" in told
    assert "does it answer the engine?" in told
    done = product.call("doctor", "--json")
    items = {item["check"]: item for item in json.loads(done.stdout)["data"]}
    assert (items["registry"]["state"], done.returncode) == ("FAIL", 1)
    assert "MULTINODE_REGISTRY_KEY" in items["registry"]["cure"]
    product.run("cancel", invocation_id)
