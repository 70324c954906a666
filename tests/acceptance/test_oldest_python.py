"""The SDK's and the worker's tests once more, on a real Python 3.8: what users' functions may run on."""

import os
import subprocess
from pathlib import Path

import pytest

from multinode_control_plane.runners.virtualenv import find_uv

ROOT = Path(__file__).parents[2]
TESTS_NEED = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "numpy"]


@pytest.fixture(scope="module")
def python(oldest, tmp_path_factory):
    """An environment of it, with the SDK as its users install it and what its tests need."""
    venv = tmp_path_factory.mktemp("oldest") / "venv"
    uv, python = find_uv(), venv / "bin/python"
    options = ["--quiet", "--no-project", "--python"]
    subprocess.run([uv, "venv", *options, oldest.path, venv], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, "--editable", ROOT, *TESTS_NEED], check=True)
    return python


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_sdk_and_the_worker_pass_their_tests(oldest, python, record_summary):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHON"))}
    options = ["-n", "2", "-q", "-p", "no:cacheprovider", "--color=no"]
    done = subprocess.run(
        [python, "-m", "pytest", "tests/sdk", *options],
        cwd=ROOT,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record_summary(f"tests/sdk on Python {oldest.version}: {done.stdout.splitlines()[-1]}")
