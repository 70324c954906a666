"""Images built with BuildKit, really: by the docker command's buildx, and by a docker command that has BuildKit inside."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from tests.images.bench import Follower, everything_saved, says, with_buildx

from multinode.errors import EnvironmentBuildFailed
from multinode.wire import EnvironmentSpec
from multinode_cli.images import buildkit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module", params=["buildx", "inside"])
def docker_command(request, tmp_path_factory):
    """The environment in which the docker command has BuildKit in this way."""
    folder = tmp_path_factory.mktemp("docker")
    if request.param == "buildx":
        environ = with_buildx(folder)
        assert "buildx" in buildkit.find(environ, "default").command
    else:
        environ = _with_it_inside(folder)
        assert "buildx" not in buildkit.find(environ, "default").command
    return environ


def _with_it_inside(folder):
    for place in os.environ["PATH"].split(os.pathsep):
        command = os.path.join(place, "docker")
        if os.access(command, os.X_OK) and " 20.10." in says([command, "--version"]):
            (folder / "bin").mkdir()
            (folder / "bin/docker").symlink_to(command)
            path = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
            environ = {"PATH": path, "DOCKER_CONFIG": str(folder)}
            if not says([command, "buildx", "version"], environ):
                return environ
    return pytest.skip("there is no docker command 20.10 here without buildx")


def test_an_image_is_built_with_its_secrets_lent_and_without_them_inside(
    shared_bench, docker_command, index_of
):
    bench = shared_bench
    index = index_of(bench)
    spec = EnvironmentSpec(
        base_image=bench.base_image,
        requirements=f"from-env\n# {_once()}\n",
        settings={"PIP_EXTRA_INDEX_URL": index.url("env", "env:env-pw")},
    )
    report = bench.make(spec, PIP_CONFIG_FILE=index.pip_conf, **docker_command)
    assert bench.follower.steps[-2:] == [
        "Installing the requirements for Python 3.8.18",
        "Adding Multinode itself",
    ]
    assert "from-env==1.0" in report.packages
    config = bench.api.inspect_image(report.image)
    assert config["Config"]["Labels"].items() >= bench.labels.items()
    looked_at = [
        ("output", "\n".join(bench.follower.told).encode()),
        ("history", json.dumps(bench.api.history(report.image)).encode()),
        ("inspect", json.dumps(config).encode()),
        *everything_saved(bench.api, report.image),
    ]
    assert [name for name, data in looked_at if b"env-pw" in data] == []


def test_pips_certificates_are_lent_as_well(shared_bench, docker_command, behind_tls):
    spec, certificates = behind_tls
    report = shared_bench.make(spec, PIP_CERT=certificates, **docker_command)
    assert "from-tls==1.0" in report.packages
    saved = everything_saved(shared_bench.api, report.image)
    assert not [name for name, _ in saved if "tmp/" in name and name.endswith(".pem")]


def _once():
    """BuildKit's cache outlives the images, and a label of the base image alone makes no other layer."""
    return f"{time.time_ns()}"


def test_a_requirement_that_does_not_resolve_is_told_with_its_line_and_the_whole_log(
    shared_bench, docker_command
):
    spec = EnvironmentSpec(base_image=shared_bench.base_image, requirements="tqdm\nnumpy==1.26.1\n")
    with pytest.raises(EnvironmentBuildFailed) as raised:
        shared_bench.make(spec, **docker_command)
    assert raised.value.message.startswith("numpy==1.26.1 needs Python <3.13,>=3.9;")
    assert raised.value.hint.startswith("requirements.txt:2: numpy==1.26.1\n")
    told = shared_bench.follower.told
    installing = told.index("Installing the requirements for Python 3.8.18")
    assert [line[:15] for line in told[installing + 1 :] if line.startswith("Collecting")]
    assert sum("No matching distribution" in line for line in told) == 1
    assert not [line for line in told if line.startswith(("#", "---", " >"))]


def test_a_further_requirement_downloads_only_itself(shared_bench, docker_command, index_of):
    bench, index = shared_bench, index_of(shared_bench)
    spec = EnvironmentSpec(
        base_image=bench.base_image,
        requirements=f"from-env\n# {_once()}\n",
        settings={"PIP_EXTRA_INDEX_URL": index.url("env", "env:env-pw")},
    )
    bench.make(spec, PIP_CONFIG_FILE=index.pip_conf, digest="1" * 64, **docker_command)
    spec = spec.replace(requirements=f"{spec.requirements}tqdm\n")
    bench.make(spec, PIP_CONFIG_FILE=index.pip_conf, digest="2" * 64, **docker_command)
    about = [line for line in bench.follower.told if "from_env-1.0" in line]
    assert [line.split()[:2] for line in about] == [["Using", "cached"]]


def test_an_interrupted_build_leaves_nothing(
    shared_bench, docker_command, index_of, monkeypatch, tmp_path
):
    bench, index = shared_bench, index_of(shared_bench)
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "made"))
    spec = EnvironmentSpec(
        base_image=bench.base_image,
        requirements=f"tqdm\n# {_once()}\n",
        settings={"PIP_INDEX_URL": index.url("hang")},
    )
    before, seen = bench.images(), []

    def interrupt(line):
        if line.startswith("Looking in indexes"):
            seen.extend((tmp_path / "made").iterdir())
            assert _processes(index.url("hang"))
            raise KeyboardInterrupt

    follower = Follower()
    follower.line = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.make(spec, follower=follower, PIP_CONFIG_FILE=index.pip_conf, **docker_command)
    assert len(seen) == 1
    assert list((tmp_path / "made").iterdir()) == []
    assert _processes(str(tmp_path / "made")) == []
    deadline = time.monotonic() + 60
    while _processes(index.url("hang")):  # in the engine's container, which BuildKit ends
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert bench.images() == before
    assert bench.containers() == index.containers


def _processes(word):
    """The processes of this machine that have the word in their environment or command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in text and int(process.name) != os.getpid():
            found.append(process.name)
    return found
