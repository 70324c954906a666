"""``multinode server``: the local control plane in the foreground and in the background."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from multinode.client import Client, path_of
from multinode.errors import InputError
from multinode.wire import Collected, Empty, RotatedKey, ServerInfo, StopRequest, to_plain
from multinode_cli.commands import backups, local_server
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.local_server import RunningServer
from multinode_cli.commands.server_options import Database, DataDir, takes_options
from multinode_cli.commands.shown import age, counted, memory
from multinode_cli.console import Console
from multinode_cli.errors import Interrupted
from multinode_cli.settings import COMMAND_RETRY_S

commands = Commands()
_server = commands.group("server", "Start, stop and look at the local control plane.")
_server.include(backups.commands)


@_server.add("run", has_json=False)
@takes_options
def run(session: Session, options: list[str]) -> Answer:
    """Run the control plane in the foreground, until Ctrl-C.

    Example: multinode server run --port 9470
    """
    local_server.check_installed()
    command = local_server.command(session.settings.home, [*options, "--foreground"])
    os.execv(sys.executable, command)


@_server.add("start")
@takes_options
def start(session: Session, options: list[str]) -> Answer:
    """Start the control plane in the background, and return when it answers.

    Example: multinode server start
    """
    server, was_started = local_server.start(session.settings, session.console, options)
    verb = "runs" if was_started else "runs already"
    if options and not was_started:
        session.console.note(
            "It keeps the options with which it was started. To change them: "
            "multinode server stop, then start it with the new ones."
        )
    data = {
        "url": server.url,
        "pid": server.pid,
        "runner": server.runner,
        "started": was_started,
    }
    return Answer(
        data,
        lambda console: console.out(
            f"The control plane {verb} at {server.url} (pid {server.pid}), runner {server.chosen}."
        ),
    )


@_server.add("stop")
def stop(
    session: Session,
    now: Annotated[
        bool, typer.Option("--now", help="Cancel what is running instead of waiting for it.")
    ] = False,
) -> Answer:
    """Stop the local control plane, after what is running has ended.

    Example: multinode server stop --now
    """
    server = local_server.find(session.settings.home)
    if server is None:
        return Answer(
            {"stopped": False}, lambda console: console.out("No local control plane is running.")
        )
    _stop(session, server, mode="now" if now else "drain")
    return Answer({"stopped": True}, lambda console: console.out("The control plane has stopped."))


@_server.add("restart")
def restart(session: Session) -> Answer:
    """Restart the control plane with the same options; workers go on running.

    Example: multinode server restart
    """
    server = local_server.find(session.settings.home)
    options: list[str] = []
    if server is not None:
        options = local_server.restart_options(server)
        _stop(session, server, mode="restart")
    started, _ = local_server.start(session.settings, session.console, options)
    data = {"url": started.url, "pid": started.pid}
    return Answer(
        data,
        lambda console: console.out(
            f"The control plane runs at {started.url} (pid {started.pid})."
        ),
    )


def _stop(session: Session, server: RunningServer, *, mode: str) -> None:
    console = session.console
    client = _client(server)
    info = client.call(ServerInfo, "GET", "/v1/server")
    for line in _what_becomes_of(info, mode):
        console.note(line)
    client.call(Empty, "POST", "/v1/server/stop", StopRequest(mode))
    try:
        with console.changing_line("waiting for the control plane to end"):
            local_server.wait_until_gone(server)
    except KeyboardInterrupt as error:
        message = "Interrupted. The control plane goes on stopping; `multinode server status` shows whether it has."
        raise Interrupted(message) from error


def _what_becomes_of(info: ServerInfo, mode: str) -> Iterator[str]:
    """What a stop does to that which is in flight; a restart does nothing to it."""
    running = info.in_flight if info.running is None else info.running
    pending = info.in_flight - running
    if mode == "restart":
        return
    if running and mode == "now":
        yield f"Cancelling {counted(running, 'running invocation')}; each has two minutes at most to clean up."
    elif running:
        yield f"Waiting for {counted(running, 'running invocation')} (--now cancels them)."
    if pending > 0:
        yield f"{counted(pending, 'pending invocation')} {'stays' if pending == 1 else 'stay'} for the next start."


@_server.add("gc")
def gc(
    session: Session,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")
    ] = False,
) -> Answer:
    """Remove environments, images and bundles that no version uses, and what is over the disk limit.

    Example: multinode server gc --dry-run
    """
    path = "/v1/server/gc?dry_run=1" if dry_run else "/v1/server/gc"
    found = session.client.call(list[Collected], "POST", path)
    total = sum(item.size_bytes for item in found)

    def show(console: Console) -> None:
        for item in found:
            size = f"{item.size_bytes / 1024**2:.1f} MiB"
            console.out(f"{item.kind:12} {item.name:19.19}  {size:>12}  {item.reason}".rstrip())
            if item.note:
                console.out(f"{'':12} {item.note}")
        verb = "Would remove" if dry_run else "Removed"
        console.out(f"{verb} {counted(len(found), 'thing')}, {total / 1024**2:.1f} MiB.")

    return Answer({"dry_run": dry_run, "items": [to_plain(item) for item in found]}, show)


@_server.add("migrate")
def migrate(session: Session, database: Database = None, data_dir: DataDir = None) -> Answer:
    """Bring the database to the schema of this release, while control planes of the one before use it.

    Example: multinode server migrate
    """
    local_server.check_installed()
    given = {"home": session.settings.home, "database": database, "data-dir": data_dir}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    done = local_server.ask("migrations", options, "The migration broke off.")
    if done["before"] == done["after"]:
        text = f"The {done['database']} database has the schema {done['after']} already."
    else:
        text = f"The {done['database']} database has the schema {done['after']} now."
    return Answer(done, lambda console: console.out(text))


@_server.add("rotate-key")
def rotate_key(session: Session) -> Answer:
    """Encrypt all .env values with a new key and retire the old one, while the control plane serves.

    Example: multinode server rotate-key
    """
    # What is asked again on the way, since an answer was lost, rotates once.
    path = path_of("server", "rotate-key", request_key=uuid4().hex)
    done = session.client.call(RotatedKey, "POST", path)

    def show(console: Console) -> None:
        console.out(f"The key {done.key_id} encrypts the .env values of all versions now.")
        console.out(f"Encrypted anew: {counted(done.versions, 'version')}.")
        if done.retired:
            console.out(f"Retired: {', '.join(done.retired)}.")
        if done.left:
            console.note(done.left)

    return Answer(to_plain(done), show)


@_server.add("move-store")
def move_store(
    session: Session,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="URL", help="The empty PostgreSQL database (MULTINODE_DATABASE)."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FILE", help="The SQLite file; the data folder's without it."
        ),
    ] = None,
    data_dir: DataDir = None,
) -> Answer:
    """Copy an SQLite store into an empty PostgreSQL database; the control plane must not be running.

    Example: multinode server move-store --to postgresql://multinode@db.example.com/multinode
    """
    local_server.check_installed()
    file = None if source is None else Path(source).absolute()
    home = session.settings.home
    given = {"home": home, "database": to, "source": file, "data-dir": data_dir}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    with session.console.changing_line("copying"):
        done = local_server.ask("moving", options, "The copying broke off; nothing was changed.")
    text = (
        f"Copied {counted(done['projects'], 'project')}, {counted(done['invocations'], 'invocation')} "
        f"to {done['database']}."
    )

    def show(console: Console) -> None:
        console.out(text)
        console.note(
            "Start the control plane with MULTINODE_DATABASE from now on, and the same data folder. "
            f"{done['source']} is not used any more."
        )

    return Answer(done, show)


@_server.add("status")
def status(session: Session) -> Answer:
    """Show whether the local control plane runs, and how.

    Example: multinode server status --json
    """
    server = local_server.find(session.settings.home)
    if server is None:
        stopped = {"running": False, "url": None, "pid": None, "runner": None, "database": None}
        text = "No local control plane is running. `multinode server start` starts one."
        return Answer(stopped, lambda console: console.out(text), exit_code=1)
    info = _client(server).call(ServerInfo, "GET", "/v1/server")
    data = {"running": True, "url": server.url, **to_plain(info), "data_dir": str(server.data_dir)}

    def show(console: Console) -> None:
        for name, value in (
            ("url", server.url),
            ("pid", f"{info.pid}, for {age(info.started_at)}"),
            ("version", info.version),
            (
                "runner",
                f"{server.chosen or info.runner}, enforces {' and '.join(info.enforces) or 'no limits'}",
            ),
            ("database", info.database),
            ("data", str(server.data_dir)),
            ("room", f"{info.cpu_capacity:g} cpu, {memory(info.memory_capacity_mib)}"),
            ("now", f"{info.in_flight} invocations in flight, {info.workers} workers"),
        ):
            console.out(f"{name:10}{value}")

    return Answer(data, show)


def _client(server: RunningServer) -> Client:
    if not server.url:
        message = "The local control plane says no URL."
        raise InputError(message, "Run `multinode server restart`.")
    return Client(server.url, server.key, retry_s=COMMAND_RETRY_S)
