"""The command line run inside the test's process, in a folder of its own."""

import json
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli import scripted_control_plane

from multinode_cli.commands import run
from multinode_cli.images import pip_settings

MAIN = """\
from multinode import Multinode

mn = Multinode()


@mn.function()
def add(a, b):
    return a + b
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def unset_pip(monkeypatch):
    """Keeps what this machine's pip is set to out of the tests."""
    monkeypatch.setattr(pip_settings, "SITE_WIDE", Path("/nonexistent"))
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs a command line in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = run(list(argv))
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture
def project(tmp_path):
    """Writes files below ``tmp_path``: a project that has nothing wrong, changed as the test says."""

    def write(files=None, *, toml='project = "billing"\n[environment]\npython = "3.11"\n'):
        for name, text in {"multinode.toml": toml, "tasks/main.py": MAIN, **(files or {})}.items():
            path = tmp_path / name
            if text is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def plane(monkeypatch):
    """A control plane that the environment names, and that answers what the test tells it to."""
    with scripted_control_plane.running() as plane:
        monkeypatch.setenv("MULTINODE_API_URL", plane.url)
        monkeypatch.setenv("MULTINODE_API_KEY", "key-1")
        monkeypatch.setenv("MULTINODE_RETRY_SECONDS", "0")
        yield plane


@pytest.fixture
def forbidden_socket():
    """The path of a listening socket that this process may not connect to (root, who may, is nobody meanwhile)."""
    folder = Path(tempfile.mkdtemp())  # short: the path of a socket has 107 characters at the most
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0)
        folder.chmod(0o755)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if is_root:
                os.seteuid(0)
            path.unlink()
            folder.rmdir()
