"""Everything bad that can be given to the command line: what it says, in one reviewed file.

Each case changes nothing on disk and exits with its code. ``tests/snapshots/messages.txt`` has the texts.
"""

import ctypes
import json
import os
import subprocess
import sys

import pytest
from tests.cli.conftest import MAIN
from tests.cli.scripted_control_plane import Foreign, Refusal, server_info, version

from multinode.limits import MAX_CHARACTERS

HEAD = "from multinode import Multinode\n\nmn = Multinode()\n\n\n"
ONE = HEAD + "@mn.function()\ndef add(a, b):\n    return a + b\n"
CHECK = ("check",)

TASKS = {
    "tasks: no main.py": {"tasks/main.py": None},
    "tasks: syntax error": {
        "tasks/main.py": HEAD + "def add(a, b:\n    return a\n",
        # not newer than the command's own Python, which leaves it to the import otherwise
        "multinode.toml": 'project = "billing"\n[environment]\npython = "3.10"\n',
    },
    "tasks: syntax that the environment's Python lacks": {
        "tasks/main.py": ONE + "    match a:\n        case 1:\n            pass\n",
        "multinode.toml": 'project = "billing"\n[environment]\npython = "3.9"\n',
    },
    "tasks: no Multinode() object": {"tasks/main.py": "from multinode import Multinode\n"},
    "tasks: two Multinode() objects": {
        "tasks/main.py": ONE.replace("mn = ", "other = Multinode()\nmn = ", 1)
    },
    "tasks: no function": {"tasks/main.py": HEAD},
    "tasks: two functions of one name": {"tasks/main.py": ONE + ONE[len(HEAD) :]},
    "tasks: settings out of bounds, of a wrong type, of an unknown unit, unknown": {
        "tasks/main.py": HEAD
        + "@mn.function(\n    cpu=17,\n    memory='1 GB',\n    timeout=60,\n    max_retries=1.5,\n    retries=3,\n)\ndef add(a, b):\n    return a\n"
    },
    "tasks: decorated method, nested function, class and lambda": {
        "tasks/main.py": HEAD
        + "class C:\n    @mn.function()\n    def method(self):\n        pass\n\n\ndef outer():\n    @mn.function()\n    def nested():\n        pass\n\n\n"
        "@mn.function()\nclass D:\n    pass\n\n\nf = mn.function()(lambda x: x)\n"
    },
    "tasks: decorator without parentheses": {
        "tasks/main.py": ONE.replace("function()", "function")
    },
    "tasks: malformed .env": {"tasks/.env": "A=1\nthis is no line\nB\n"},
    "tasks: requirements that cannot be": {
        "tasks/requirements.txt": "numpy\n-r missing.txt\nmultinode==2.0.0\n-e .\n./missing.whl\n"
    },
    "toml: not TOML": {"multinode.toml": "project = billing\n"},
    "toml: unknown key": {"multinode.toml": 'projekt = "billing"\n'},
    "toml: unknown key of environment": {"multinode.toml": '[environment]\npyhton = "3.12"\n'},
    "toml: Python as a number": {"multinode.toml": "[environment]\npython = 3.12\n"},
    "toml: Python too old": {"multinode.toml": '[environment]\npython = "3.7"\n'},
    "toml: tasks outside": {"multinode.toml": 'tasks = "../elsewhere"\n'},
    "toml: project name": {"multinode.toml": 'project = "My Project"\n'},
}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_wrong_with_tasks(name, cli, project, messages, tmp_path):
    project(TASKS[name])
    outcome = cli(*CHECK)
    assert outcome.out == ""
    messages.check(name, CHECK, outcome.code, outcome.err, replace=[(tmp_path, "/path/to")])


def test_a_link_out_of_tasks(cli, project, messages, tmp_path):
    project()
    (tmp_path / "tasks/data").symlink_to("../data")
    outcome = cli(*CHECK)
    messages.check("tasks: a link out of tasks/", CHECK, outcome.code, outcome.err)


def test_too_large_a_bundle(cli, project, messages, plane):
    project()
    for i in range(1, 12):
        with open(f"tasks/data-{i:02}.bin", "wb") as file:
            file.truncate(i * 2 * 1024**2)
    outcome = cli("deploy")
    messages.check("tasks: a bundle over 100 MiB", ["deploy"], outcome.code, outcome.err)
    assert plane.requests == []


USAGE = {
    "usage: unknown command": ("deplyo",),
    "usage: unknown option": ("deploy", "--no-cahce"),
    "usage: no folder": ("check", "missing"),
    "usage: no project name": ("deploy",),
    "usage: project name empty": ("deploy", "--project-name", ""),
    "usage: project name too long": ("deploy", "--project-name", "x" * 64),
    "usage: project name with other characters": ("deploy", "--project-name", "Bill ing"),
    "usage: unknown template": ("init", "there", "--template", "hullo"),
    "usage: unknown profile": ("list", "--profile", "nobody"),
    "usage: no function": ("invoke",),
    "usage: no project for a function": ("invoke", "add", "1", "2"),
    "usage: an option of invoke that there is not": ("invoke", "billing/add", "--detatch"),
    "usage: one argument twice": ("invoke", "billing/add", "a=1", "a=2"),
    "usage: two projects": ("invoke", "billing/add", "--project-name", "other"),
    "usage: --input that is not there": ("invoke", "billing/add", "--input", "missing.json"),
    "usage: --input and arguments": ("invoke", "billing/add", "1", "--input", "missing.json"),
    "usage: no invocation": ("logs",),
    "usage: not an invocation's id": ("result", "exe-1"),
    "usage: no span": ("logs", "inv-1", "--since", "yesterday"),
    "usage: no span of costs": ("cost", "--for", "a week"),
    "usage: a number of lines that is none": ("logs", "inv-1", "-n", "many"),
    "usage: an attempt below 1": ("logs", "inv-1", "--attempt", "0"),
    "usage: nothing to cancel": ("cancel",),
    "usage: --all with an invocation": ("cancel", "inv-1", "--all"),
    "usage: unknown role": ("key", "create", "ci", "--role", "admn"),
    "usage: role missing": ("key", "create", "ci"),
    "usage: nobody to log out": ("logout",),
    "usage: login without URL and terminal": ("login",),
    "usage: run a function that there is not": ("run", "ad"),
}


@pytest.mark.parametrize("name", USAGE)
def test_what_is_wrong_with_the_command_line(name, cli, project, messages, tmp_path, plane):
    project(toml='[environment]\npython = "3.11"\n')
    outcome = cli(*USAGE[name])
    assert outcome.out == ""
    assert plane.requests == []
    messages.check(name, USAGE[name], outcome.code, outcome.err, replace=[(tmp_path, "/path/to")])


@pytest.mark.parametrize("command", ["deploy", "upgrade", "dev"])
def test_a_folder_without_a_project(command, cli, messages, tmp_path, plane, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cli(command)
    assert (outcome.out, plane.requests) == ("", [])
    messages.check(f"usage: {command} where no project is", [command], outcome.code, outcome.err)


ARGUMENTS = {
    "arguments: one missing": ("invoke", "billing/add", "1"),
    "arguments: too many": ("invoke", "billing/add", "1", "2", "3"),
    "arguments: unknown keyword": ("invoke", "billing/add", "1", "bb=2"),
    "arguments: unknown function": ("invoke", "billing/ad", "1"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_checked_before_anything_is_sent(name, cli, messages, plane):
    plane.on("GET", "/v1/projects/billing/versions/latest", version())
    outcome = cli(*ARGUMENTS[name])
    assert [request.method for request in plane.requests] == ["GET"]
    messages.check(name, ARGUMENTS[name], outcome.code, outcome.err)


def test_a_project_that_is_not_there(cli, messages, plane, project):
    project({"tasks/main.py": MAIN})
    plane.on("GET", "/v1/server", server_info())
    refusal = Refusal(404, "project_not_found", "There is no project 'billing'.")
    plane.on("GET", "/v1/projects/billing/versions/latest", refusal)
    outcome = cli("upgrade")
    messages.check("project: upgrade before deploy", ["upgrade"], outcome.code, outcome.err)


def test_no_answer(cli, messages, monkeypatch):
    monkeypatch.setenv("MULTINODE_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MULTINODE_API_KEY", "key")
    monkeypatch.setenv("MULTINODE_RETRY_SECONDS", "0")
    outcome = cli("list")
    messages.check("control plane: out of reach", ["list"], outcome.code, outcome.err)


HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in to go on.</body></html>"
OTHERS = {
    "control plane: of another major version": Foreign(200, b"[]", version="3.1.0"),
    "control plane: a proxy's page to sign in": Foreign(200, HTML),
    "control plane: a proxy's bad gateway": Foreign(502, b"<html><h1>502 Bad Gateway</h1></html>"),
    "control plane: another server": Foreign(404, b"404 page not found"),
    "control plane: its disk is full": Refusal(  # as the store says it; tests/faults fill a real one
        507,
        "storage_full",
        "The control plane's disk is full; nothing was changed.",
        "Free some space where its data folder lies, then try again.",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_control_plane_or_cannot_answer(name, cli, messages, plane):
    plane.on("GET", "/v1/projects", OTHERS[name])
    outcome = cli("list")
    assert outcome.out == ""
    messages.check(
        name, ["list"], outcome.code, outcome.err, replace=[(plane.url, "http://example.com")]
    )


INPUTS = {
    "--input: no JSON": b'[[1, 2], {"c": }]',
    "--input: an object": b'{"a": 1, "b": 2}',
    "--input: the arguments alone": b"[1, 2]",
    "--input: no UTF-8": b"\xff\xfe[",
}


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_file_that_holds_no_arguments(name, cli, messages, plane, tmp_path):
    (tmp_path / "input.json").write_bytes(INPUTS[name])
    argv = ["invoke", "billing/add", "--input", "input.json"]
    outcome = cli(*argv)
    assert plane.requests == []
    messages.check(name, argv, outcome.code, outcome.err)


def test_arguments_that_are_too_long(cli, messages, plane, tmp_path):
    plane.on("GET", "/v1/projects/billing/versions/latest", version())
    (tmp_path / "input.json").write_text(json.dumps([["x" * MAX_CHARACTERS, 1], {}]))
    argv = ["invoke", "billing/add", "--input", "input.json"]
    outcome = cli(*argv)
    assert [request.method for request in plane.requests] == ["GET"]
    messages.check("arguments: too long", argv, outcome.code, outcome.err)


PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
"""Of linux/prctl.h and linux/capability.h."""


def _read_as_others_do():
    """root reads everything: gives up that right in the process that is about to be the command."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                os._exit(99)


@pytest.mark.skipif(sys.platform != "linux", reason="giving up root's rights is Linux's prctl")
@pytest.mark.parametrize(
    "path",
    [
        "tasks/main.py",
        "tasks/.env",
        "tasks/requirements.txt",
        "tasks/a/data.csv",
        "multinode.toml",
        "tasks/.multinodeignore",
    ],
)
def test_files_that_cannot_be_read(path, project, messages):
    root = project()
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).touch()
    (root / path).chmod(0)
    done = subprocess.run(
        [sys.executable, "-m", "multinode_cli", "check"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=_read_as_others_do,
    )
    messages.check(
        f"unreadable: {path}", CHECK, done.returncode, done.stderr, replace=[(root, "/path/to")]
    )


def test_undeploy_without_a_terminal_names_the_flag(cli, messages, plane):
    from tests.cli.test_commands import detail

    plane.on("GET", "/v1/projects/billing", detail())
    outcome = cli("undeploy", "billing")
    messages.check(
        "undeploy: no terminal to ask at", ["undeploy", "billing"], outcome.code, outcome.err
    )
    assert [request.method for request in plane.requests] == ["GET"]


def test_usage_errors_are_json_where_json_is_asked_for(cli):
    outcome = cli("deploy", "--json", "--nope")
    assert (outcome.code, outcome.err) == (2, "")
    assert outcome.json["ok"] is False
    assert outcome.json["error"]["code"] == "invalid_input"
