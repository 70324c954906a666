"""An invocation's input, run here on the local code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import MAIN
from tests.control_plane.told_plane import serving

RAISING = MAIN.replace(
    "    return a + b", "    total = a + b\n    raise ValueError(f'bad {total}')"
)


@pytest.fixture
def stored(tmp_path_factory, monkeypatch):
    """An invocation of ``add(2, 3)`` whose input the control plane has."""
    with serving(tmp_path_factory.mktemp("plane")) as served:

        async def start() -> str:
            await served.plane.deploy("billing")
            return await served.plane.start("billing", inputs=['[[2],{"b":3}]'])

        invocation_id = served.do(start())
        monkeypatch.setenv("MULTINODE_API_URL", served.url)
        monkeypatch.setenv("MULTINODE_API_KEY", served.key("read"))
        yield invocation_id


def replayed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multinode_cli", "replay", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def test_the_stored_input_is_run_on_the_local_code(stored, project, tmp_path):
    project({"tasks/main.py": MAIN.replace("def add", "def f")})
    done = replayed(tmp_path, stored)
    assert (done.returncode, done.stdout) == (0, "5\n")
    assert f"Replaying billing/f of {stored} (PENDING) here" in done.stderr


def test_what_it_raises_is_told_with_its_traceback(stored, project, tmp_path):
    project({"tasks/main.py": RAISING.replace("def add", "def f")})
    done = replayed(tmp_path, stored)
    assert done.returncode == 1
    assert "error: f raised ValueError: bad 5" in done.stderr


def test_a_function_that_is_not_here_any_more_is_said(stored, project, tmp_path):
    project()
    done = replayed(tmp_path, stored)
    assert done.returncode == 3
    assert "main.py has no function 'f'." in done.stderr


def test_another_project_is_warned_of(stored, project, tmp_path):
    project({"tasks/main.py": MAIN.replace("def add", "def f")}, toml='project = "other"\n')
    done = replayed(tmp_path, stored)
    assert done.stdout == "5\n"
    assert "is of project billing; this is other." in done.stderr


def test_an_invocation_that_there_is_not(stored, project, tmp_path):
    project()
    assert replayed(tmp_path, "inv-none").returncode in (2, 3)


def test_a_debugger_needs_a_terminal(stored, project, tmp_path):
    project()
    done = replayed(tmp_path, stored, "--pdb")
    assert done.returncode == 2
    assert "--pdb needs a terminal" in done.stderr


def test_with_json_what_it_prints_is_talk(stored, project, tmp_path):
    project(
        {
            "tasks/main.py": MAIN.replace("def add", "def f").replace(
                "    return", "    print('here')\n    return"
            )
        }
    )
    done = replayed(tmp_path, stored, "--json")
    assert json.loads(done.stdout) == {"ok": True, "data": {"result": 5}}
    assert "here" in done.stderr


def debugged(folder: Path, stored: str, typed: str) -> tuple[int, str]:
    """The exit code, and what is said at the terminal, of a replay in which this is typed."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "multinode_cli", "replay", stored, "--pdb"],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # what Linux says at the other side's end
        pass
    os.close(ours)
    return running.wait(30), said.decode()


def test_the_debugger_stops_at_the_first_line_and_where_it_raises(stored, project, tmp_path):
    project({"tasks/main.py": RAISING.replace("def add", "def f")})
    code, text = debugged(tmp_path, stored, "p a * 100\nc\np total * 1000\nq\n")
    assert code == 1
    assert "main.py(8)f()" in text, repr(text)[:700]
    assert "200" in text
    assert "5000" in text
    assert "commands/local_run.py" not in text


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [("q\n", 1, "The debugger was left before f had ended."), ("c\n", 0, "\n5\r\n")],
)
def test_who_leaves_the_debugger_is_told_no_result(stored, project, tmp_path, typed, code, says):
    project({"tasks/main.py": MAIN.replace("def add", "def f")})
    found, text = debugged(tmp_path, stored, typed)
    assert (found, says in text) == (code, True), text
    assert "null" not in text
