"""Shell completion: the protocol of each shell, and real shells where they are installed."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multinode import wire
from multinode_cli.commands.all_commands import SUMMARIES

BIN = Path(sys.executable).parent
NOW = "2026-01-02T03:04:05.000000+00:00"


@pytest.fixture
def run(tmp_path):
    """Runs a command line with more environment; nothing may be said on stderr."""

    def call(line, **environ):
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path, **home, **environ},
        )
        assert done.stderr == ""
        return done.stdout

    return call


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request, run):
    """What each shell is offered at the end of a line."""

    def call(line):
        name = request.param
        environ = {"_MULTINODE_COMPLETE": f"complete_{name}", "_TYPER_COMPLETE_ARGS": line}
        environ |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "COMP_WORDS": line}
        environ["COMP_CWORD"] = str(line.count(" "))
        out = run([BIN / "multinode"], **environ)
        if name == "zsh":
            return [part.split('"')[0] for part in out.replace('(("', '\n"').split('\n"')[1:]]
        return [found.partition("\t")[0] for found in out.splitlines() if found]

    return call


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("multinode de", ["deploy", "describe", "dev"]),
        ("multinode server st", ["start", "stop", "status"]),
        ("multinode logs --f", ["--follow"]),
        ("multinode key create --r", ["--role"]),
        ("multinode --ver", ["--version"]),
        ("multinode nonsense --f", []),
    ],
)
def test_commands_and_options_are_completed(complete, line, expected):
    assert complete(line) == expected


def test_all_commands_are_offered_and_nothing_else(complete):
    """Not the second lines of long summaries either."""
    names = [name for commands in SUMMARIES.values() for name in commands]
    assert complete("multinode ") == names
    assert all(item.startswith("-") for item in complete("multinode -"))


def test_projects_and_functions_are_completed(complete, plane, tmp_path):
    (tmp_path / "multinode.toml").write_text('project = "billing"\n')
    infos = [
        wire.ProjectInfo("billing", NOW, "ver-1", ["add", "sum"], 0),
        wire.ProjectInfo("builds", NOW, "ver-2", ["add"], 0),
    ]
    plane.on("GET", "/v1/projects", infos)
    for line, expected in (
        ("undeploy bi", ["billing"]),
        ("invoke bui", ["builds/add"]),
        ("invoke a", ["add"]),
        ("describe ", ["add", "billing/add", "billing/sum", "builds/add", "sum"]),
    ):
        offers = (complete(f"multinode {line}") for _ in range(20))
        # an empty one: on a busy machine even this control plane may take a second
        assert next(filter(None, offers), []) == expected


def test_completion_starts_no_control_plane(complete):
    assert complete("multinode invoke ") == []
    assert list(Path(os.environ["MULTINODE_HOME"]).iterdir()) == []


@pytest.mark.parametrize("toml", ["project = nonsense", 'profile = "nobody"'])
def test_a_broken_project_file_is_silent(complete, plane, tmp_path, toml):
    (tmp_path / "multinode.toml").write_text(toml)
    assert complete("multinode invoke ") == []


def test_a_control_plane_that_does_not_answer_is_not_waited_for(complete, monkeypatch):
    """It takes connections, and then says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MULTINODE_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MULTINODE_API_KEY", "key")
        began = time.monotonic()
        assert complete("multinode invoke ") == []
        assert time.monotonic() - began < 15  # the client alone would wait for 30


# --- the scripts in real shells ---


def script(run, name):
    environ = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    return run([BIN / "multinode", "--show-completion", name], **environ)


def needs(name):
    return pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed")


@needs("bash")
def test_bash_completes_with_its_script(run):
    test = """
    COMP_WORDS=(multinode server st) COMP_CWORD=2
    _multinode_completion multinode
    echo "${COMPREPLY[@]}"
    """
    assert run(["bash", "-c", script(run, "bash") + test]) == "start stop status\n"


@needs("fish")
def test_fish_completes_with_its_script(run):
    out = run(["fish", "--no-config", "-c", script(run, "fish") + "\ncomplete --do-complete 'multinode server st'"])  # fmt: skip
    assert [line.partition("\t")[0] for line in out.splitlines()] == ["start", "status", "stop"]


@needs("zsh")
def test_zsh_completes_with_its_script(run):
    """Zsh's own widgets need a terminal: its function is called as they would, with a stand-in for _arguments."""
    test = """
    compdef() { registered="$1 $2" }
    _arguments() { print -r -- "$1" }
    %s
    print $registered
    words=(multinode server st) CURRENT=3
    _multinode_completion
    """
    out = run(["zsh", "-f", "-c", test % script(run, "zsh")])
    registered, offered = out.split("\n", 1)
    assert registered == "_multinode_completion multinode"
    assert offered.startswith('*: :(("start":"Start the control plane in the background')
    assert '"status":' in offered
