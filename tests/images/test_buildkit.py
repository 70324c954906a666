"""Images built with BuildKit, through the docker command's buildx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile

import pytest
from tests.images.bench import Follower, everything_saved, missing

from multinode.errors import EnvironmentBuildFailed
from multinode.wire import EnvironmentSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STAND_IN = """\
#!/bin/sh
# Debian's docker command has BuildKit, and no buildx: this has the words of buildx that are used.
shift
[ "$1" = version ] && exit 0
shift
for word; do
  shift
  case $word in
    --load) ;;
    --builder) skip=1 ;;
    *) [ -n "$skip" ] && skip= || set -- "$@" "$word" ;;
  esac
done
DOCKER_BUILDKIT=1 exec {docker} build "$@"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A PATH with a docker command that has buildx."""
    inherited = os.environ["PATH"]
    command = shutil.which("docker")
    if command and _succeeds([command, "buildx", "version"]):
        return inherited
    for folder in inherited.split(os.pathsep):
        command = os.path.join(folder, "docker")
        if os.access(command, os.X_OK) and b"Debian" in _version(command):
            made = tmp_path_factory.mktemp("bin") / "docker"
            made.write_text(STAND_IN.format(docker=command))
            made.chmod(0o755)
            return f"{made.parent}{os.pathsep}{inherited}"
    missing("there is no docker command here that has BuildKit")
    return None


def _succeeds(command):
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _version(command):
    """Debian's has BuildKit inside; Docker's own needs its plugin."""
    said = subprocess.run([command, "--version"], capture_output=True, check=False).stdout
    return b"Debian" if b"+dfsg" in said else b""


def test_an_image_is_built_with_its_secrets_lent_and_without_them_inside(
    shared_bench, path, index_of
):
    bench = shared_bench
    index = index_of(bench)
    spec = EnvironmentSpec(
        base_image=bench.base_image,
        requirements=f"from-env\n# {bench.mark}: BuildKit's cache outlives the images\n",
        settings={"PIP_EXTRA_INDEX_URL": index.url("env", "env:env-pw")},
    )
    report = bench.make(spec, PATH=path, PIP_CONFIG_FILE=index.pip_conf)
    assert "Installing the requirements for Python 3.8.18" in bench.follower.steps
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


def test_a_requirement_that_does_not_resolve_is_told_with_its_line(shared_bench, path):
    spec = EnvironmentSpec(base_image=shared_bench.base_image, requirements="tqdm\nnumpy==1.26.1\n")
    with pytest.raises(EnvironmentBuildFailed) as raised:
        shared_bench.make(spec, PATH=path)
    assert raised.value.message.startswith("numpy==1.26.1 needs Python <3.13,>=3.9;")
    assert raised.value.hint.startswith("requirements.txt:2: numpy==1.26.1\n")


def test_pips_downloads_are_kept(shared_bench, path, index_of):
    bench, index = shared_bench, index_of(shared_bench)
    for number in range(2):
        spec = EnvironmentSpec(
            base_image=bench.base_image,
            requirements=f"from-env\n# {number}, {bench.mark}\n",
            settings={"PIP_EXTRA_INDEX_URL": index.url("env", "env:env-pw")},
        )
        bench.make(spec, PATH=path, PIP_CONFIG_FILE=index.pip_conf, digest=f"{number}" * 64)
    kept = [line for line in bench.follower.told if "Using cached" in line]
    assert ["from_env-1.0" in line for line in kept] == [True]


def test_an_interrupted_build_leaves_nothing(shared_bench, path, index_of, monkeypatch, tmp_path):
    bench, index = shared_bench, index_of(shared_bench)
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "made"))
    spec = EnvironmentSpec(
        base_image=bench.base_image,
        requirements=f"tqdm\n# {bench.mark}\n",
        settings={"PIP_INDEX_URL": index.url("hang")},
    )
    before, seen = bench.images(), []

    def interrupt(title):
        if title.startswith("Installing the requirements"):
            seen.extend((tmp_path / "made").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.make(spec, follower=Follower(interrupt), PATH=path, PIP_CONFIG_FILE=index.pip_conf)
    assert len(seen) == 1
    assert list((tmp_path / "made").iterdir()) == []
    assert bench.images() == before
    assert bench.containers() == index.containers
