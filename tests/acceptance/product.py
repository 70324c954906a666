"""The real command in a folder of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from multinode.client import Client

COMMAND = Path(sys.executable).with_name("multinode")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The Python that is there for certain."""


class Product:
    """``multinode`` run in ``folder``, against the control plane of ``folder/home``."""

    new_database: ClassVar[Callable[[], str | None]] = lambda: None
    """Of each product's own, by ``--database``; None: its data folder's file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "MULTINODE_HOME": str(folder / "home")}
        database = type(self).new_database()
        if database is not None:
            self.environ["MULTINODE_DATABASE"] = database

    def write(self, files: dict[str, str], *, project: str = "shop", python: str = HERE) -> None:
        """Writes ``files`` below the folder, and a ``multinode.toml``."""
        toml = f'project = "{project}"\n[environment]\npython = "{python}"\n'
        for name, text in {"multinode.toml": toml, **files}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def call(
        self, *arguments: str, timeout_s: float = 90, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env={**self.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(self, *arguments: str, exit_code: int = 0) -> str:
        """What a command prints; it has to end with ``exit_code``."""
        done = self.call(*arguments)
        assert done.returncode == exit_code, (arguments, done.stdout, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> dict:
        """The data that a command prints with ``--json``."""
        return json.loads(self.run(*arguments, "--json"))["data"]

    @property
    def server(self) -> dict:
        """What ``server.json`` says."""
        return json.loads((self.folder / "home" / "server.json").read_text())

    def client(self) -> Client:
        """A client with this user's key."""
        return Client(self.server["url"], self.server["key"])

    def workers_left(self) -> list[str]:
        """What there is of workers where the runner makes them."""
        return [path.name for path in (self.folder / "home" / "server" / "workers").glob("*")]
