"""What ``doctor`` says of the engine that builds images: each thing that is amiss with its cure."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from tests.cli.scripted_engine import running

from multinode_cli.images import checks, engine
from multinode_cli.images.checks import check_engine

BASE = "python:3.12-bookworm"


@pytest.fixture
def scripted():
    with running() as made:
        yield made
        made.may_answer.set()


def check(scripted, name="base image"):
    found = check_engine({"PATH": "", "DOCKER_HOST": scripted.address}, BASE)
    return next(item for item in found if item.check == name)


def test_an_engine_that_answers_is_told_with_its_version_and_builder(scripted):
    found = check(scripted, "Docker")
    assert found.state == "ok"
    expected = f"20.10.24 (linux/amd64) at {scripted.address}, builds with its classic builder"
    assert found.finding == expected


def test_an_engine_that_is_too_old_fails(scripted):
    scripted.api_version = "1.39"
    found = check(scripted, "Docker")
    assert found.state == "FAIL"
    assert found.cure.endswith("Install Docker 19.03 or later.")


def test_a_base_image_that_is_in_the_engine_asks_no_registry(scripted):
    assert check(scripted).state == "ok"
    assert not [path for _, path, _ in scripted.requests if path.startswith("/distribution")]


def test_a_base_image_that_its_registry_has_is_not_pulled(scripted):
    scripted.base_platform, scripted.is_in_registry = None, True
    found = check(scripted)
    assert (found.state, found.finding) == ("ok", f"{BASE} can be pulled: its registry answers")
    assert not [path for _, path, _ in scripted.requests if path == "/images/create"]


@pytest.mark.parametrize(
    ("words", "finding", "cure"),
    [
        ("dial tcp: lookup registry-1.docker.io: no such host", "its registry cannot be reached", "docker load"),
        ("unauthorized: authentication required", "wants a login", "docker login"),
        ("manifest unknown", "There is no base image", "multinode.toml"),
    ],
)  # fmt: skip
def test_a_base_image_that_cannot_be_had_is_a_warning_with_its_cure(scripted, words, finding, cure):
    scripted.base_platform, scripted.registry_error = None, words
    found = check(scripted)
    assert found.state == "note"
    assert finding in found.finding
    assert cure in found.cure


def test_a_registry_that_is_silent_is_not_waited_for(scripted, monkeypatch):
    monkeypatch.setattr(engine, "REGISTRY_S", 0.2)
    scripted.base_platform, scripted.registry_error = None, "too late"
    scripted.may_answer.clear()
    found = check(scripted)
    assert (found.state, "its registry cannot be reached" in found.finding) == ("note", True)
    assert "too late" not in found.cure


def test_an_engine_that_is_away_fails_with_its_cure(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    (found,) = check_engine({"PATH": "", "DOCKER_HOST": f"unix://{tmp_path}/s"}, BASE)
    assert (found.check, found.state) == ("Docker", "FAIL")
    assert "connection refused" in found.finding
    assert "Start Docker, or set DOCKER_HOST" in found.cure


CHECK = """
import sys
from multinode_cli.images.checks import check_engine
(found,) = check_engine({"PATH": "", "DOCKER_HOST": sys.argv[1]}, "python:3.8")
print(found.state, found.finding, found.cure)
"""


def test_a_user_who_may_not_use_it_is_told_the_group(tmp_path):
    """In a process without privileges, at a socket of another user."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() or setpriv is None:
        pytest.skip("only root, with setpriv, can do without its privileges")
    folder = tmp_path / "of root"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "s"))
        listening.listen()
        os.chown(folder / "s", 1, 1)
        (folder / "s").chmod(0o660)
        command = [sys.executable, "-c", CHECK, f"unix://{folder}/s"]
        unprivileged = [setpriv, "--bounding-set=-all", "--inh-caps=-all"]
        done = subprocess.run([*unprivileged, *command], capture_output=True, text=True)
    assert done.stdout.startswith("FAIL This user may not use the Docker engine at"), done
    assert "usermod -aG docker" in done.stdout


def test_too_little_room_is_told_with_its_folder_and_cure(monkeypatch, tmp_path):
    class Local:
        address = "unix:///var/run/docker.sock"

        def facts(self):
            return engine.EngineFacts("20.10", "1.41", "linux/amd64", str(tmp_path))

    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 0)
    assert checks._disk(Local())[0].state == "ok"
    monkeypatch.setattr(checks, "MIN_FREE_BYTES", 1 << 60)
    (found,) = checks._disk(Local())
    assert (found.state, str(tmp_path) in found.finding) == ("FAIL", True)
    assert "docker system prune" in found.cure
