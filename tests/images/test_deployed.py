"""What the real command deploys to a real server with the ``docker`` runner: secrets stay out, and the README's words are so."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
import uuid
from pathlib import Path

import docker
import pytest
from tests.acceptance.product import Product
from tests.images.bench import everything_saved, with_buildx

from multinode.wire import VersionInfo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BUILD_S = 300.0

MAIN = """
import os
import time

import multinode

mn = multinode.Multinode()
MARK = "{code}"


@mn.function()
def sleep(seconds):
    assert os.environ["SECRET"]
    print("begun", flush=True)
    time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def product(engine_api, default_bases, tmp_path_factory):
    made = Product(tmp_path_factory.mktemp("product"))
    made.environ["MULTINODE_RUNNER"] = "docker"
    made.run("server", "start")
    yield made
    made.run("server", "stop", "--now")
    installation = (made.folder / "home/server/installation").read_text()
    label = {"label": f"multinode.installation={installation}"}
    engine = docker.from_env()
    for image in engine.images.list(filters=label):
        engine.images.remove(image.id, force=True)
    assert engine.containers.list(all=True, filters=label, ignore_removed=True) == []
    assert engine.networks.list(filters=label) == []
    engine.close()


# --- secrets ---


@pytest.fixture(params=["classic", "buildx"])
def builder(request, tmp_path):
    """The variables with which ``deploy`` builds in this way."""
    if request.param == "classic":
        return {"DOCKER_BUILDKIT": "0"}
    return with_buildx(tmp_path / "docker")


@pytest.fixture
def secrets():
    """What is in .env and in the code."""
    return {name: f"{name}-{uuid.uuid4().hex}" for name in ("dotenv", "code")}


@pytest.fixture
def sleeping(product, builder, secrets, tmp_path_factory):
    """What deploy printed, and the invocation of a function that sleeps."""
    files = {
        "tasks/main.py": MAIN.format(code=secrets["code"]),
        "tasks/.env": f"SECRET={secrets['dotenv']}\n",
        "tasks/requirements.txt": f"# {uuid.uuid4().hex}: a build of its own\n",
    }
    product.write(files, project="secretive", python="3.8")
    done = product.call("deploy", timeout_s=BUILD_S, **builder)
    assert done.returncode == 0, done.stderr
    invocation = product.run("invoke", "secretive/sleep", "600", "--detach").strip()
    deadline = time.monotonic() + 90
    while "begun" not in product.run("logs", invocation):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield done.stdout + done.stderr
    product.run("cancel", invocation)


def test_secrets_and_code_are_nowhere_but_in_the_function(product, sleeping, secrets, engine_api):
    assert "Adding Multinode itself" in sleeping
    image = _latest(product, "secretive").environment.image
    installation = (product.folder / "home/server/installation").read_text()
    label = {"label": [f"multinode.installation={installation}", "multinode.worker"]}
    (container,) = (item["Id"] for item in engine_api.containers(filters=label))
    running = engine_api.inspect_container(container)
    processes = _processes(engine_api, container)
    looked_at = [
        ("build output", sleeping.encode()),
        ("history", _json(engine_api.history(image))),
        ("inspect image", _json(engine_api.inspect_image(image))),
        ("inspect container", _json(running)),
        ("logs", engine_api.logs(container)),
        ("top", _json(engine_api.top(container))),
        *((f"log file {path}", path.read_bytes()) for path in _log_files(running)),
        *((f"argv of {pid}", read(pid, "cmdline")) for pid in _all_processes()),
        *((f"environ of {pid}", read(pid, "environ")) for pid in processes),
        *everything_saved(engine_api, image),
    ]
    assert any(name.endswith("opt/multinode/multinode/wire.py") for name, _ in looked_at)
    assert _found(looked_at, secrets) == []
    assert len(processes) >= 3  # init, supervisor, the function


def test_dotenv_is_sealed_where_the_server_keeps_it(product, sleeping, secrets):
    home = product.folder / "home"
    kept = [(str(path), path.read_bytes()) for path in home.rglob("*") if path.is_file()]
    assert any(data for _, data in kept)
    assert _found(kept, {"dotenv": secrets["dotenv"]}) == []


def _latest(product, project):
    return product.client().call(VersionInfo, "GET", f"/v1/projects/{project}/versions/latest")


def _json(data):
    return json.dumps(data).encode()


def _found(looked_at, secrets):
    return [
        (name, secret)
        for name, data in looked_at
        for secret, value in secrets.items()
        if value.encode() in data
    ]


def _processes(engine_api, container):
    """The pids, on this machine, of what runs in the container."""
    found = engine_api.top(container)
    place = found["Titles"].index("PID")
    return [int(process[place]) for process in found["Processes"]]


def _all_processes():
    """This machine's, without the test itself."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in found if pid != os.getpid()]


def read(pid, name):
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is not ours to look into
        return b""


def _log_files(running):
    path = Path(running["LogPath"])
    found = list(path.parent.glob(path.name + "*")) if os.access(path.parent, os.R_OK) else []
    assert found or os.getuid() != 0
    return found


# --- the README's words ---


def _commands(example):
    """The line of the README that deploys an example, as its commands."""
    text = (ROOT / "README.md").read_text()
    (line,) = re.findall(rf"^multinode deploy examples/{example}/.*$", text, re.MULTILINE)
    return [shlex.split(command)[1:] for command in line.split(" && ")]


def _run(product, example):
    """What the last of the commands prints."""
    deploying, invoking = _commands(example)
    deploying[1] = str(ROOT / deploying[1])
    done = product.call(*deploying, timeout_s=BUILD_S)
    assert done.returncode == 0, done.stderr
    return json.loads(product.run(*invoking))


def test_the_example_with_numpy_runs_in_a_container(product):
    assert _run(product, "numbers") == pytest.approx(39.6, abs=2)


def test_the_example_with_a_system_package_runs_in_a_container(product):
    lines = _run(product, "labels")
    assert len(lines) == 23  # 21 modules, and the margin
    assert lines[1].startswith("  ##############")
