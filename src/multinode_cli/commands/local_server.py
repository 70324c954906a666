"""The local control plane as a process: finding it, starting it, waiting for its end.

Whether it runs is told by the lock that it holds on its data folder, never by its pid: a pid can be another
process's by now, and is only shown.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from multinode.errors import (
    Conflict,
    MissingExtra,
    MultinodeError,
    OperationFailed,
    ServerStartFailed,
    by_code,
)
from multinode_cli.console import Console
from multinode_cli.settings import Settings

_NEEDED = ("starlette", "uvicorn", "sqlalchemy", "alembic", "cryptography", "prometheus_client")
_LOG_TAIL_LINES = 15
OTHER_S = 10.0
"""How long another one may take to come up."""
_MIB = 1024**2


@dataclass(frozen=True)
class RunningServer:
    """What ``server.json`` says of a control plane that runs. ``options`` start the same again."""

    url: str
    key: str = field(repr=False)
    pid: int
    data_dir: Path
    options: Mapping[str, Any]
    runner: str = ""
    runner_reason: str = ""
    """Why it is this one, where nobody named it."""
    lock: Path = field(default_factory=Path)
    """Held by the process while it runs."""
    port: int | None = None
    """Where others reach it; ``url`` has another one where that speaks TLS."""

    @property
    def chosen(self) -> str:
        """The runner in words."""
        why = f" ({self.runner_reason})" if self.runner_reason else ""
        return f"{self.runner}{why}"


def find(home: Path) -> RunningServer | None:
    """The local control plane, None where none runs (a ``server.json`` that a crash has left says nothing)."""
    try:
        data = json.loads((home / "server.json").read_text(encoding="utf-8"))
        options = data.get("options") or {}
        data_dir = Path(options.get("data_dir") or home / "server")
        server = RunningServer(
            data["url"],
            data["key"],
            int(data["pid"]),
            data_dir,
            options,
            str(data.get("runner", "")),
            str(data.get("runner_reason", "")),
            Path(data.get("lock") or data_dir / "lock"),
            data.get("port"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return server if _is_locked(server.lock) else None


def ensure(
    settings: Settings, console: Console, *, ended_by: str = "multinode server stop"
) -> RunningServer:
    """The local control plane, started if need be, which one line then says, and what ends it."""
    server = find(settings.home)
    if server is not None:
        return server
    server, was_started = start(settings, console, [])
    if was_started:
        console.note(f"Started a local control plane at {server.url} ({ended_by} ends it).")
    return server


def start(
    settings: Settings, console: Console, options: Sequence[str]
) -> tuple[RunningServer, bool]:
    """Start it in the background and wait until it answers; with False where it ran already.

    Two that start at once start one: the second waits for the first. Bad ``options`` are an error in any case: InputError.
    Raises MissingExtra and ServerStartFailed too.
    """
    check_installed()
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _start_lock(settings.home):
        server = find(settings.home)
        if server is not None and options:
            _spawn(settings, [*options, "--only-check"])
        if server is not None:
            return server, False
        with console.changing_line("starting the local control plane"):
            try:
                _spawn(settings, options)
            except Conflict:
                server = _wait_for_other(settings.home)
                if server is None:
                    raise
                return server, False
        server = find(settings.home)
    if server is None:
        message = "The local control plane came up and went away at once."
        raise ServerStartFailed(message, f"Its log is {_log(settings.home)}.")
    return server, True


def _wait_for_other(home: Path) -> RunningServer | None:
    """The one that holds the data folder, once it is up: a `server run` of this home that has begun. None where it is not this home's."""
    until = time.monotonic() + OTHER_S
    while (server := find(home)) is None and time.monotonic() < until:
        time.sleep(0.1)
    return server


def command(home: Path, options: Sequence[str]) -> list[str]:
    """The command line of the control plane's process."""
    return [sys.executable, "-m", "multinode_control_plane", "--home", str(home), *options]


def ask(module: str, arguments: Sequence[str], broke_off: str) -> dict[str, Any]:
    """What a program of the control plane's own answers. Raises the error that it tells, OperationFailed where it tells none."""
    program = [sys.executable, "-m", f"multinode_control_plane.{module}", *arguments]
    done = subprocess.run(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        said = json.loads(done.stdout)
    except ValueError as error:
        raise OperationFailed(broke_off, "What it said stands above.") from error
    if "error" in said:
        error_cls = by_code().get(said["error"]["code"], MultinodeError)
        raise error_cls(said["error"]["message"], said["error"]["hint"])
    result: dict[str, Any] = said["result"]
    return result


def check_installed() -> None:
    """Raise MissingExtra where the ``[server]`` extra is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        from multinode.distribution import install_command  # imports hashlib

        message = f"The control plane is not installed here ({', '.join(missing)} missing)."
        raise MissingExtra(message, f"Install it with: {install_command('server')}")


def wait_until_gone(server: RunningServer) -> None:
    """Return when the control plane's process has ended: then its lock is free."""
    with server.lock.open("r") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def restart_options(server: RunningServer) -> list[str]:
    """The options that start ``server`` as it was, on the port where it listens now."""
    given = dict(server.options)
    capacity = given.pop("capacity", None)
    arguments = [f"--port={server.port or server.url.rpartition(':')[2].strip('/')}"]
    if isinstance(capacity, dict):
        arguments.append(f"--capacity=cpu={capacity['cpu']:g},memory={capacity['memory_mib']}MiB")
    for name, value in given.items():
        if name in ("home", "port") or value is None or value is False or value in ([], ""):
            continue
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        text = ",".join(value) if isinstance(value, list) else value
        arguments.append(flag if value is True else f"{flag}={text}")
    return arguments


def _spawn(settings: Settings, options: Sequence[str]) -> None:
    """Start the process and wait for its word, or its end."""
    log = _log(settings.home)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    reading, writing = os.pipe()
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    *command(settings.home, options),
                    f"--log-file={log}",
                    "--ready-fd",
                    str(writing),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(writing,),
                cwd="/",
            )
        process.returncode = 0  # it outlives this process on purpose: no ResourceWarning for it
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        word = pipe.readline()
    _take(word, log)


def _take(word: bytes, log: Path) -> None:
    try:
        said = json.loads(word)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        message = f"The local control plane ended while it started. Its last words:\n{_tail(log)}"
        raise ServerStartFailed(message, f"The whole log is {log}.")
    if "error" in said:
        error = said["error"]
        cls = by_code().get(error.get("code", ""), MultinodeError)
        raise cls(str(error.get("message", "")), str(error.get("hint", "")))


@contextmanager
def _start_lock(home: Path) -> Iterator[None]:
    with (home / "start.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _log(home: Path) -> Path:
    return home / "server" / "server.log"


def _tail(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-_LOG_TAIL_LINES:])
