"""What a command imports: everybody waits for it each time. Looked at in fresh interpreters."""

import json
import subprocess
import sys

import pytest
import typer

from multinode_cli.commands import root
from multinode_cli.commands.all_commands import SUMMARIES

HEAVY = {
    "alembic", "asyncio", "cryptography", "hashlib", "http.client", "httpx", "jsonpickle", "pathspec", "pydantic",
    "rich", "sqlalchemy", "ssl", "starlette", "uvicorn",
}  # fmt: skip
OF_A_CLIENT = {"http.client", "ssl"}
"""A request needs these."""

RUN = """
import atexit, json, sys
sys.argv = ["multinode", *json.loads(sys.argv[1])]
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from multinode_cli.__main__ import main
main()
"""


def modules_after(*words):
    """The modules that the command has loaded when it ends, and its exit code."""
    line = [sys.executable, "-c", RUN, json.dumps(words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    return set(done.stderr.splitlines()[-1].split()), done.returncode


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--version",)], ids=" ".join)
def test_help_and_version_import_no_commands_and_nothing_heavy(words):
    modules, code = modules_after(*words)
    assert code == 0
    assert modules & HEAVY == set()
    assert "multinode.wire" not in modules
    assert not {f"multinode_cli.commands.{name}" for name in SUMMARIES} & modules


def test_version_does_not_wait_for_typer():
    assert "typer" not in modules_after("--version")[0]


@pytest.mark.parametrize("words", [("list", "--help"), ("server", "--help"), ("server", "start", "-h")], ids=" ".join)  # fmt: skip
def test_help_of_a_command_imports_its_module_alone(words):
    modules, code = modules_after(*words)
    assert code == 0
    assert modules & HEAVY == set()
    loaded = {name for name in SUMMARIES if f"multinode_cli.commands.{name}" in modules}
    assert loaded == {"projects" if words[0] == "list" else "server"}


def test_init_needs_no_client(tmp_path):
    modules, code = modules_after("init", str(tmp_path / "new"))
    assert code == 0
    assert modules & HEAVY == set()
    assert "multinode.wire" not in modules


@pytest.mark.parametrize("words", [("list",), ("ps", "-a"), ("logs", "inv-1", "-n", "5")], ids=" ".join)  # fmt: skip
def test_a_command_that_asks_imports_what_a_request_needs(words, plane):
    plane.on("GET", "/v1/projects", [])
    plane.on("GET", "/v1/invocations/inv-1/logs", b"")
    modules, _ = modules_after(*words)
    assert len(plane.requests) == 1
    assert modules & (HEAVY - OF_A_CLIENT) == set()


def test_the_list_of_commands_says_what_each_says_itself():
    expected = {name: text for commands in SUMMARIES.values() for name, text in commands.items()}
    group = root()
    found = {}
    for name in group.list_commands(typer.Context(group)):
        _, command, _ = group.resolve_command(typer.Context(group), [name])
        found[name] = command.short_help or command.help
    assert found == expected
