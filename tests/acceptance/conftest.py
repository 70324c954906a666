"""A real Python 3.8, for what has to be seen on one."""

import asyncio
import os
from contextlib import closing, contextmanager

import docker
import pytest
from tests.acceptance.docker_product import BuiltDockerProduct
from tests.acceptance.ecs_product import EcsProduct, place_in
from tests.acceptance.product import Product
from tests.aws.stand_in import StandIn
from tests.hand_made_image import needs_engine
from tests.shared_folder import SharingEngine

from multinode_control_plane.runners.pythons import OLDEST_MINOR, Pythons
from multinode_control_plane.runners.virtualenv import find_uv

BASE_IMAGE = "python:3.8-bullseye"


@pytest.fixture(scope="session")
def oldest():
    """The oldest Python that the SDK runs on; CI must have it."""
    found = asyncio.run(Pythons(find_uv(), os.environ).find(OLDEST_MINOR))
    if found is None:
        missing = f"no Python 3.{OLDEST_MINOR} is on PATH, in pyenv or managed by uv"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


@pytest.fixture(scope="session", autouse=True)
def _on_database(new_database):
    """What `Product`s keep their state in; see ``--database``."""
    Product.new_database = new_database
    yield
    Product.new_database = lambda: None


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def on_each_database(request, pytestconfig):
    """For the core of the product: tested on both in every run, whatever ``--database`` says of the rest."""
    with _on(request, pytestconfig):
        yield


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "docker", "ecs"])
def make_product(request, pytestconfig, tmp_path_factory):
    """The same with containers and with tasks of ECS, too: makes a product in a folder."""
    if request.param in ("sqlite", "postgresql"):
        with _on(request, pytestconfig):
            yield Product
        return
    needs_engine()
    if request.param == "ecs":
        aws, place = request.getfixturevalue("tasks_of_all")
        yield lambda folder: EcsProduct(folder, aws, place)
        return
    shared = _shared(tmp_path_factory)
    with closing(
        SharingEngine(tmp_path_factory.mktemp("engine") / "docker.sock", shared)
    ) as engine:
        yield lambda folder: BuiltDockerProduct(folder, engine)


@pytest.fixture(scope="session")
def tasks_of_all(tmp_path_factory):
    """A stand-in for AWS that modules share, since the first push of a base image takes longest; and the place in it."""
    with StandIn(tmp_path_factory.mktemp("aws"), keeps_tags=True) as aws:
        aws.set(shared_folder=str(_shared(tmp_path_factory)))
        yield aws, place_in(aws)


@pytest.fixture(scope="module")
def engine():
    """An engine that has the image of the default Python; modules that build nothing have one of their own."""
    needs_engine()
    with closing(docker.from_env()) as made:
        if not any(BASE_IMAGE in image.tags for image in made.images.list()):
            reason = f"{BASE_IMAGE} is not in the engine (`docker pull {BASE_IMAGE}`)"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        yield made


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """The stand-in for AWS, with an ECR that keeps its tags."""
    with StandIn(tmp_path_factory.mktemp("aws"), keeps_tags=True) as made:
        yield made


def _shared(tmp_path_factory):
    """The folder of all tests, which functions see that run as another user."""
    found = tmp_path_factory.getbasetemp()
    found.chmod(0o755)
    return found


@contextmanager
def _on(request, pytestconfig):
    if request.param == "sqlite" and pytestconfig.getoption("--database") != "sqlite":
        pytest.skip("--database names another")
    before = Product.new_database
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        Product.new_database = lambda: server.new_database(empty=True)
    yield
    Product.new_database = before
