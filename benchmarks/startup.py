"""Start-up: the command line and the import, beside the interpreter and the libraries they cannot do without."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import MULTINODE, Figure, Installation, alternating, p50, times
from multinode.client import client_for, path_of
from multinode.settings import resolve
from multinode.wire import ProjectInfo


def figures(at: Installation, quick: bool) -> list[Figure]:
    found = alternating(5 if quick else 25, {name: _run(line) for name, line in _lines().items()})
    bare, libraries = found["bare"], found["libraries"]
    request = p50(times(20, _request))
    return [
        Figure("python -c pass (floor)", bare, "ms"),
        Figure("python -c 'import typer, rich' (floor)", libraries, "ms"),
        Figure("multinode --help", found["--help"], "ms", 2 * libraries, libraries),
        Figure("multinode --version", found["--version"], "ms", 1.3 * libraries, libraries),
        Figure("list, its own time", found["list"] - request, "ms", 120, libraries),
        Figure("ps, its own time", found["ps"] - request, "ms", 120, libraries),
        Figure("import multinode, over the interpreter", found["import"] - bare, "ms", 10, bare),
        Figure("from multinode import Multinode, likewise", found["from"] - bare, "ms"),
    ]


def _lines() -> dict[str, list[str]]:
    commands = {name: [MULTINODE, name] for name in ("--help", "--version", "list", "ps")}
    return {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import multinode"],
        "from": [sys.executable, "-c", "from multinode import Multinode"],
        "libraries": [sys.executable, "-c", "import typer, rich"],
        **commands,
    }


def _run(line: list[str]):
    return lambda: subprocess.run(line, check=True, capture_output=True, timeout=60)


def _request() -> None:
    client = client_for(resolve())
    client.run(client.exchange(list[ProjectInfo], "GET", path_of("projects")))
