"""What tests of images need: an engine, base images, a registry."""

import time
from pathlib import Path

import certifi
import docker
import docker.errors
import pytest
from tests.hand_made_image import needs_engine
from tests.images.bench import Bench, missing, registry_process
from tests.images.index import Index

from multinode.wire import EnvironmentSpec

USER, PASSWORD = "pusher", "registry-password"


@pytest.fixture(scope="session")
def engine_api():
    """The engine of DOCKER_HOST."""
    needs_engine()  # the package itself would leave a socket open where none answers
    api = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto", timeout=600)
    yield api
    api.close()


@pytest.fixture(scope="session")
def default_bases(engine_api):
    """The images that environments are made from where nobody chose another."""
    for name in ("python:3.8-bullseye", "python:3.12-bookworm"):
        try:
            engine_api.inspect_image(name)
        except docker.errors.ImageNotFound:
            missing(f"{name} is not in the engine (`docker pull {name}`)")


@pytest.fixture
def bench(engine_api, default_bases):
    with Bench(engine_api).open() as made:
        yield made


@pytest.fixture(scope="module")
def shared_bench(engine_api, default_bases):
    """One for all tests of a file, so that they share layers."""
    with Bench(engine_api).open() as made:
        made.base_image = made.base()
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The address of a registry that knows one user."""
    with registry_process(tmp_path_factory.mktemp("registry"), {USER: PASSWORD}) as address:
        yield address


@pytest.fixture
def index_of(tmp_path):
    """Makes a private index of packages in a bench's engine, with a pip.conf that trusts it."""
    made = []

    def make(bench):
        made.append(Index(bench))
        made[-1].pip_conf = str(tmp_path / "index.conf")
        Path(made[-1].pip_conf).write_text(f"[global]\ntrusted-host = {made[-1].host}\n")
        return made[-1]

    yield make
    for index in made:
        index.close()


@pytest.fixture
def behind_tls(index_of, shared_bench, tmp_path):
    """A private index with a certificate of an authority of its own: a spec that needs it, and the certificates for pip."""
    index = index_of(shared_bench)
    index.open_tls(tmp_path)
    public = Path(
        "/etc/ssl/certs/ca-certificates.crt"
    )  # where a proxy has its own, that is among them
    known = (public if public.exists() else Path(certifi.where())).read_bytes()
    (tmp_path / "bundle.pem").write_bytes(known + (tmp_path / "ca.pem").read_bytes())
    spec = EnvironmentSpec(
        base_image=shared_bench.base_image,
        requirements=f"from-tls\n# {time.time_ns()}: BuildKit's cache outlives the images\n",
        settings={"PIP_EXTRA_INDEX_URL": index.url("tls", "tls:tls-pw")},
    )
    return spec, str(tmp_path / "bundle.pem")


@pytest.fixture
def index(index_of, bench):
    """A private index of packages."""
    return index_of(bench)
