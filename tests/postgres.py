"""A real PostgreSQL server of a test run's own, on loopback, with a new database for each test.

Its programs are Debian's (or those on PATH); it refuses to run as root, so it runs as another user then. CI must have it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psycopg
import pytest

from multinode_control_plane import migrations
from multinode_control_plane.databases import open_database

WAIT_S = 30.0
FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=on")
"""Nothing here survives a power cut; what survives a crash of the server alone is not touched by it."""


def programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; None where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    return next((each for each in debian if (each / "initdb").exists()), None) or (
        Path(found).parent if found else None
    )


class PostgresServer:
    """``start`` and ``stop`` as often as a test likes; the port stays. ``close`` removes all of it."""

    def __init__(self, options: Sequence[str] = FAST) -> None:
        self._options = options
        found = programs()
        if found is None:
            missing = "PostgreSQL's server is not installed (Debian: postgresql)"
            pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
        self._programs = found
        self._user = _other_user() if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="multinode-pg-"))
        self._own(self.folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count()
        self._has_template = False
        self._run(
            "initdb", "--auth=trust", "--username=multinode", "--no-sync", "--encoding=UTF8",
            "--locale=C.UTF-8", "-D", str(self._data),
        )  # fmt: skip

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Returns when it takes connections."""
        options = [
            *self._options, f"port={self.port}", "listen_addresses=127.0.0.1", "max_connections=200",
            f"unix_socket_directories={self.folder}",
        ]  # fmt: skip
        arguments = [word for option in options for word in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", str(self._data), *arguments],
                stdout=log,
                stderr=log,
                preexec_fn=self._become,  # noqa: PLW1509, RUF100 - ends with this process
                cwd=self.folder,
            )
        deadline = time.monotonic() + WAIT_S
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url("postgres")).close()
                return
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def stop(self, how: int = signal.SIGINT) -> None:
        """``SIGINT`` ends its connections and stops; ``SIGQUIT`` is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(WAIT_S)
        self._process = None

    def restart(self, how: int = signal.SIGINT) -> None:
        """As `stop`, then `start`."""
        self.stop(how)
        self.start()

    def close(self) -> None:
        """Stops it and removes its files."""
        if self._process is not None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """Of one of its databases."""
        return f"postgresql://multinode@127.0.0.1:{self.port}/{name}"

    def new_database(self, *, empty: bool = False) -> str:
        """The URL of a new database, with the schema of this release, or ``empty``."""
        name = f"db{next(self._names)}"
        if empty:
            self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            return self.url(name)
        if not self._has_template:
            self.execute("CREATE DATABASE with_schema TEMPLATE template0")
            database = open_database(self.url("with_schema"))
            migrations.prepare(database)
            database.engine.dispose()
            self._has_template = True
        self.execute(f"CREATE DATABASE {name} TEMPLATE with_schema")
        return self.url(name)

    def execute(self, statement: str, name: str = "postgres") -> list[tuple[object, ...]]:
        """Runs a statement by itself; its rows."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            preexec_fn=self._become,
            cwd=self.folder,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _become(self) -> None:
        if self._user is not None:
            os.setgroups([])
            os.setgid(self._user.pw_gid)
            os.setuid(self._user.pw_uid)
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGQUIT)

    def _own(self, folder: Path) -> None:
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)


@contextmanager
def running(options: Sequence[str] = FAST) -> Iterator[PostgresServer]:
    """A server that runs, and nothing of it afterwards."""
    made = PostgresServer(options)
    try:
        made.start()
        yield made
    finally:
        made.close()


def _other_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError("PostgreSQL refuses to run as root, and there is no other user")


class Relay:
    """A way from ``host`` to a server on loopback that a test can cut: as if the network went away, or a single connection was lost."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._port = port
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.is_cut = False
        self.passes = threading.Event()
        """Cleared: it takes connections, and what comes on them, and nothing is ever said."""
        self.passes.set()
        self.on_client_bytes: Callable[[bytes], bool] = lambda data: True
        """Asked for each piece that a client sends, before it is passed on. False: what the server answers from now on is
        lost, and the connection with it. ConnectionError: it is lost before."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            lost = threading.Event()
            threading.Thread(target=self._up, args=(client, server, lost), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client, lost), daemon=True).start()

    def lead_to(self, port: int) -> None:
        """From now on new connections go there."""
        self._port = port

    def _up(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if not self.on_client_bytes(data):
                    lost.set()
                self.passes.wait()
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if lost.is_set():
                    break
                client.sendall(data)
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self) -> None:
        """Ends all connections, and takes no new ones until `mend`."""
        self.is_cut = True
        for pair in self._pairs:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        """It is a way again."""
        self.is_cut = False

    def close(self) -> None:
        self.cut()
        self.passes.set()
        self._listener.close()
