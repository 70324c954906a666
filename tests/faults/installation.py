"""A control plane of a test's own that can be killed, the functions of ``project/`` in it, and what they left outside.

Started by the command it takes half a second, nearly all of it imports; two hundred restarts could not be afforded. So its process is
forked from one that has imported it (multiprocessing's fork server). What runs in it is what ``python -m multinode_control_plane``
runs.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.fault import Hook, run_server
from tests.faults.history import Effect

from multinode import wire
from multinode.client import Client, path_of
from multinode.function import Function, get_deployed_function
from multinode_control_plane.runners.worker_processes import is_living

PROJECT = "faults"
COMMAND = Path(sys.executable).with_name("multinode")
WAIT_S = 30.0
"""How long anything is waited for before the test fails."""


class Installation:
    """Everything below ``folder``; the server listens on a port of its own, the same one each time."""

    runner = "process"
    cpu = 4.0
    """The machine's room."""
    size = (0.01, "16 MiB")
    """CPU and memory of most functions."""
    way_host = "127.0.0.1"
    """Where something between its workers and its server has to listen."""

    def __init__(
        self, folder: Path, data_dir: Path | None = None, database: str | None = None
    ) -> None:
        self.folder = folder
        self.database = database
        self.hooks: tuple[Hook, ...] = ()
        """Put into each server's process that is started."""
        self.settings: dict[str, str] = {}
        """More of the server's, as variables."""
        self.front: int | None = None
        """The port that clients are told, if another than the server's."""
        self.home = folder / "home"
        self.data_dir = data_dir or self.home / "server"
        self.effects_folder = folder / "effects"
        self.port = _quiet_port()
        self._server: Any = None
        for made in (self.home, self.effects_folder, folder / "tasks"):
            made.mkdir(parents=True)
        source = Path(__file__).parent / "project"
        shutil.copy(source / "main.py", folder / "tasks")
        cpu, memory = self.size
        self.dotenv = {"EFFECTS": str(self.effects_folder), "CPU": str(cpu), "MEMORY": memory}
        lines = (f"{name}={value}\n" for name, value in self.dotenv.items())
        (folder / "tasks/.env").write_text("".join(lines))
        python = "{}.{}".format(*sys.version_info[:2])
        text = (source / "multinode.toml").read_text()
        (folder / "multinode.toml").write_text(f'{text}[environment]\npython = "{python}"\n')

    # --- the server ---

    def start(self, fault: Hook | None = None) -> None:
        """Starts the server and returns when it listens."""
        reader = self.begin_start(fault)
        with os.fdopen(reader, "rb") as ready:
            word = ready.readline()
        assert b"url" in word, (word, self.log())

    def until_led(self) -> None:
        """On PostgreSQL who starts after a kill leads a while later: only then do workers begin."""
        self.server_info()

    def begin_start(self, fault: Hook | None = None) -> int:
        """Starts the server, and returns the descriptor on which it says that it listens."""
        assert self._server is None, "it runs already"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.fault"])
        theirs, ours = context.Pipe(duplex=False)[::-1]
        arguments = [f"--home={self.home}", *self.options()]
        log = str(self._log_file())
        hooks = self.hooks if fault is None else (*self.hooks, fault)
        variables = {**self.variables(), **self.settings, "MULTINODE_RUNNER": self.runner}
        arguments_of_it = (arguments, log, theirs, hooks, variables)
        made = context.Process(target=run_server, args=arguments_of_it)
        made.start()
        theirs.close()
        reader = os.dup(ours.fileno())
        ours.close()
        self._server = made
        return reader

    def options(self) -> list[str]:
        """The server's."""
        options = [
            f"--port={self.port}", f"--capacity=cpu={self.cpu:g},memory=4GiB",
            f"--data-dir={self.data_dir}",
        ]  # fmt: skip
        return [*options, f"--database={self.database}"] if self.database else options

    def worker_url(self, port: int) -> str:
        """How its workers reach a port of this machine."""
        return f"http://127.0.0.1:{port}"

    def variables(self) -> dict[str, str]:
        """Of the server's process, besides those that all have."""
        return {}

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_dir / 'multinode.sqlite'}"

    @property
    def pid(self) -> int:
        """Of the server."""
        return int(self.known()["pid"])

    def send(self, number: int) -> None:
        """Sends the server's process a signal: SIGSTOP and SIGCONT."""
        os.kill(self._server.pid, number)

    def kill(self) -> None:
        """kill -9 of the server's process; returns when it is dead."""
        self._server.kill()
        self.wait_killed()

    def wait_killed(self) -> None:
        """Waits until the server's process was killed by SIGKILL."""
        self._server.join(WAIT_S)
        assert self._server.exitcode == -signal.SIGKILL, (self._server.exitcode, self.log())
        self._server = None

    def wait_deposed(self) -> None:
        """Waits until the server's process has ended since another leads."""
        self._server.join(WAIT_S)
        assert self._server.exitcode is not None, self.log()
        self._server = None

    def beside(self) -> Installation:
        """Another server of the same database and data folder, with a home and a port of its own; not started."""
        other = copy.copy(self)
        other.home, other.port, other._server = self.folder / "home-2", _quiet_port(), None
        other.home.mkdir(exist_ok=True)
        return other

    def restart(self) -> None:
        """As `start`, whether it runs or not; it leads then."""
        self.end()
        self.start()
        self.until_led()

    def end(self) -> None:
        """As `kill`, whether it runs or not, and whoever has started it."""
        if self._server is not None:
            self._server.kill()
            self._server.join()
            self._server = None
        for pid in self.processes(b"multinode_control_plane"):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not is_living(pid), "its end")

    def close(self) -> None:
        """Cancels what runs, and sees that nothing is left."""
        self.end()
        try:
            self.run("server", "start", *self.options())
            self.run("server", "stop", "--now")
            wait_until(lambda: not self.processes(), "no process of the installation is left")
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """The end of the server's log."""
        return self._log_file().read_text()[-4000:]

    def _log_file(self) -> Path:
        # Where the command has it too.
        path = self.home / "server/server.log"
        path.parent.mkdir(exist_ok=True)
        return path

    # --- those who use it ---

    def run(self, *arguments: str, exit_code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Runs the command; ``exit_code`` None: any will do."""
        with self.popen(*arguments) as process:
            try:
                out, err = process.communicate(timeout=2 * WAIT_S)
            finally:
                process.kill()
        done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
        assert exit_code in (None, done.returncode), (done, self.log())
        return done

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the command."""
        return subprocess.Popen(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def environ(self) -> dict[str, str]:
        """The environment of commands."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("MULTINODE")}
        if self.database:
            kept["MULTINODE_DATABASE"] = self.database
        own = {"MULTINODE_HOME": str(self.home), "MULTINODE_RUNNER": self.runner}
        return {**kept, **self.variables(), **self.settings, **own}

    def deploy(self) -> None:
        """Deploys the functions of ``project/``."""
        self.run("deploy")

    def known(self) -> dict[str, Any]:
        """``server.json``."""
        return json.loads((self.home / "server.json").read_text())

    def connection(self) -> dict[str, str]:
        """The variables by which programs reach it; the same before and after a restart."""
        key = json.loads((self.data_dir / "local.json").read_text())["key"]
        url = f"http://127.0.0.1:{self.front or self.port}"
        return {"MULTINODE_API_URL": url, "MULTINODE_API_KEY": key}

    def client(self) -> Client:
        connection = self.connection()
        return Client(connection["MULTINODE_API_URL"], connection["MULTINODE_API_KEY"])

    def function(self, name: str) -> Function[..., Any, Any]:
        return get_deployed_function(PROJECT, name)

    def server_info(self) -> wire.ServerInfo:
        return self.client().call(wire.ServerInfo, "GET", path_of("server"))

    def detail(self, invocation_id: str) -> wire.InvocationDetail:
        path = path_of("invocations", invocation_id, "detail")
        return self.client().call(wire.InvocationDetail, "GET", path)

    def all_invocation_ids(self) -> Iterator[str]:
        """Of the whole store."""
        offset: str | None = None
        while True:
            path = path_of("invocations", offset=offset)
            page = self.client().call(wire.InvocationList, "GET", path)
            yield from (item.invocation_id for item in page.invocations)
            offset = page.next_offset
            if offset is None:
                return

    # --- what is there outside ---

    def effects(self) -> dict[str, list[Effect]]:
        """By label, in order."""
        found = defaultdict(list)
        for path in self.effects_folder.glob("*.*.*"):
            label, what, at_ns = path.name.split(".")
            if label:
                found[label].append(Effect(label, what, int(at_ns), path.read_text()))
        return {name: sorted(effects, key=lambda e: e.at_ns) for name, effects in found.items()}

    def wait_for(self, label: str, what: str) -> Effect:
        """The first such effect, once it is there."""
        return wait_until(
            lambda: next((e for e in self.effects().get(label, []) if e.what == what), None),
            f"{label}.{what}",
        )

    def give(self, sign: str) -> None:
        """Gives the functions a sign."""
        (self.effects_folder / sign).touch()

    def take_back(self, sign: str) -> None:
        (self.effects_folder / sign).unlink()

    def supervisor_of(self, invocation_id: str) -> int:
        """The pid of the invocation's supervisor."""
        return json.loads(self.worker_file(invocation_id).read_text())["pid"]

    def worker_file(self, invocation_id: str) -> Path:
        """What the supervisor has written and holds locked."""
        worker_id = self.detail(invocation_id).executions[-1].worker_id
        return self.data_dir / f"workers/{worker_id}.json"

    def left(self) -> list[str]:
        """What there is of workers outside of the store, in words: files and folders, and processes that their code has started."""
        folders = (self.data_dir / "workers", self.data_dir / "work")
        files = [str(path) for folder in folders if folder.exists() for path in folder.iterdir()]
        mark = f"EFFECTS={self.effects_folder}".encode()
        strays = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    strays.append(f"process {path.parent.name}")
        return [*files, *strays]

    def processes(self, word: bytes = b"") -> list[int]:
        """Processes whose command line names the installation's folder, and ``word``: servers by command, starters, workers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                line = path.read_bytes()
                folders = (str(self.home).encode(), str(self.data_dir).encode())
                if word in line and any(folder in line for folder in folders):
                    found.append(int(path.parent.name))
        return [pid for pid in found if is_living(pid)]


def wait_until(look: Callable[[], Any], what: str, most_s: float = WAIT_S) -> Any:
    """What ``look`` finds, once it is true."""
    deadline = time.monotonic() + most_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.005)
    return found


def _quiet_port() -> int:
    """A free port that the system gives to nobody: while the server is dead nobody else may take it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
