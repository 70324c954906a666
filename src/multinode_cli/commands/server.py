"""``multinode server``: the local control plane in the foreground and in the background."""

from __future__ import annotations

import os
import sys
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
from multinode_cli.commands.shown import age, counted, memory
from multinode_cli.console import Console
from multinode_cli.errors import Interrupted
from multinode_cli.settings import COMMAND_RETRY_S

commands = Commands()
_server = commands.group("server", "Start, stop and look at the local control plane.")
_server.include(backups.commands)

_Runner = Annotated[
    str | None,
    typer.Option(
        "--runner",
        metavar="NAME",
        help="auto, process or docker (MULTINODE_RUNNER).",
    ),
]
_Database = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="The store (MULTINODE_DATABASE).")
]
_Host = Annotated[
    str | None,
    typer.Option("--host", metavar="ADDRESS", help="Address to listen on (MULTINODE_HOST)."),
]
_Port = Annotated[
    str | None,
    typer.Option("--port", metavar="NUMBER", help="Port; 0 is any free one (MULTINODE_PORT)."),
]
_DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Folder of everything that is stored (MULTINODE_DATA_DIR).",
    ),
]
_WorkerUrl = Annotated[
    str | None,
    typer.Option(
        "--worker-url", metavar="URL", help="How workers reach it (MULTINODE_WORKER_URL)."
    ),
]
_Capacity = Annotated[
    str | None,
    typer.Option(
        "--capacity",
        metavar="ROOM",
        help="Room for workers, cpu=4,memory=8GiB (MULTINODE_CAPACITY).",
    ),
]
_DiskLimit = Annotated[
    str | None,
    typer.Option(
        "--disk-limit",
        metavar="SIZE",
        help="How much is kept that nothing needs, 20GiB (MULTINODE_DISK_LIMIT).",
    ),
]
_Registry = Annotated[
    str | None,
    typer.Option("--registry", metavar="HOST/NAME", help="Where images go (MULTINODE_REGISTRY)."),
]
_RegistryUsername = Annotated[
    str | None,
    typer.Option("--registry-username", help="Its user (MULTINODE_REGISTRY_USERNAME, and …_KEY)."),
]
_AllowProcess = Annotated[
    bool,
    typer.Option(
        "--allow-process", help="Run functions as this user although others can reach it."
    ),
]
_AllowHttp = Annotated[
    bool,
    typer.Option(
        "--allow-http", help="Speak plain HTTP beyond loopback, without a proxy that speaks TLS."
    ),
]

_LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format", metavar="text|json", help="Lines of its own log (MULTINODE_LOG_FORMAT)."
    ),
]
_AdminKeyFile = Annotated[
    str | None,
    typer.Option(
        "--admin-key-file",
        metavar="FILE",
        help="Holds the key of the name admin (MULTINODE_ADMIN_KEY_FILE).",
    ),
]
_TlsCert = Annotated[
    str | None,
    typer.Option(
        "--tls-cert", metavar="FILE", help="Certificate, to speak TLS (MULTINODE_TLS_CERT)."
    ),
]
_TlsKey = Annotated[
    str | None,
    typer.Option("--tls-key", metavar="FILE", help="The certificate's key (MULTINODE_TLS_KEY)."),
]
_TrustedProxies = Annotated[
    str | None,
    typer.Option(
        "--trusted-proxies",
        metavar="ADDRESSES",
        help="Whose X-Forwarded-For is believed, e.g. 10.0.0.0/8 (MULTINODE_TRUSTED_PROXIES).",
    ),
]
_SecretKeyFrom = Annotated[
    str | None,
    typer.Option(
        "--secret-key-from",
        metavar="PLACE",
        help="Keys of .env values, file:PATH, env:NAME or aws:ID (MULTINODE_SECRET_KEY_FROM).",
    ),
]
_AllowedHosts = Annotated[
    str | None,
    typer.Option(
        "--allowed-hosts",
        metavar="NAMES",
        help="Further names by which it is called, e.g. mn.example.com (MULTINODE_ALLOWED_HOSTS).",
    ),
]


def _options(
    *,
    data_dir: str | None,
    allow_process: bool,
    allow_http: bool,
    admin_key_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    secret_key_from: str | None,
    **given: str | None,
) -> list[str]:
    paths = {
        "data_dir": data_dir,
        "admin_key_file": admin_key_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
    }
    if secret_key_from and secret_key_from.startswith("file:"):
        # The server runs in another folder.
        secret_key_from = f"file:{Path(secret_key_from[5:]).expanduser().absolute()}"
    given["secret_key_from"] = secret_key_from
    values = {**given, **{name: Path(at).absolute() for name, at in paths.items() if at}}
    options = [
        f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None
    ]
    switches = {"--allow-process": allow_process, "--allow-http": allow_http}
    return [*options, *(name for name, is_on in switches.items() if is_on)]


@_server.add("run", has_json=False)
def run(
    session: Session,
    runner: _Runner = None,
    database: _Database = None,
    host: _Host = None,
    port: _Port = None,
    data_dir: _DataDir = None,
    worker_url: _WorkerUrl = None,
    capacity: _Capacity = None,
    disk_limit: _DiskLimit = None,
    registry: _Registry = None,
    registry_username: _RegistryUsername = None,
    allow_process: _AllowProcess = False,
    allow_http: _AllowHttp = False,
    allowed_hosts: _AllowedHosts = None,
    log_format: _LogFormat = None,
    admin_key_file: _AdminKeyFile = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    trusted_proxies: _TrustedProxies = None,
    secret_key_from: _SecretKeyFrom = None,
) -> Answer:
    """Run the control plane in the foreground, until Ctrl-C.

    Example: multinode server run --port 9470
    """
    local_server.check_installed()
    options = _options(
        runner=runner, database=database, host=host, port=port, data_dir=data_dir,
        worker_url=worker_url, capacity=capacity, disk_limit=disk_limit, registry=registry,
        registry_username=registry_username, allow_process=allow_process,
        allow_http=allow_http, allowed_hosts=allowed_hosts, log_format=log_format, admin_key_file=admin_key_file,
        tls_cert=tls_cert, tls_key=tls_key, trusted_proxies=trusted_proxies,
        secret_key_from=secret_key_from,
    )  # fmt: skip
    command = local_server.command(session.settings.home, [*options, "--foreground"])
    os.execv(sys.executable, command)


@_server.add("start")
def start(
    session: Session,
    runner: _Runner = None,
    database: _Database = None,
    host: _Host = None,
    port: _Port = None,
    data_dir: _DataDir = None,
    worker_url: _WorkerUrl = None,
    capacity: _Capacity = None,
    disk_limit: _DiskLimit = None,
    registry: _Registry = None,
    registry_username: _RegistryUsername = None,
    allow_process: _AllowProcess = False,
    allow_http: _AllowHttp = False,
    allowed_hosts: _AllowedHosts = None,
    log_format: _LogFormat = None,
    admin_key_file: _AdminKeyFile = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    trusted_proxies: _TrustedProxies = None,
    secret_key_from: _SecretKeyFrom = None,
) -> Answer:
    """Start the control plane in the background, and return when it answers.

    Example: multinode server start
    """
    options = _options(
        runner=runner, database=database, host=host, port=port, data_dir=data_dir,
        worker_url=worker_url, capacity=capacity, disk_limit=disk_limit, registry=registry,
        registry_username=registry_username, allow_process=allow_process,
        allow_http=allow_http, allowed_hosts=allowed_hosts, log_format=log_format, admin_key_file=admin_key_file,
        tls_cert=tls_cert, tls_key=tls_key, trusted_proxies=trusted_proxies,
        secret_key_from=secret_key_from,
    )  # fmt: skip
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
    if mode == "drain" and info.in_flight:
        console.note(
            f"Waiting for {counted(info.in_flight, 'invocation')} in flight (--now cancels them):"
        )
    elif mode == "now" and info.in_flight:
        console.note(
            f"Cancelling {counted(info.in_flight, 'invocation')}; each has two minutes at most to clean up."
        )
    client.call(Empty, "POST", "/v1/server/stop", StopRequest(mode))
    try:
        with console.changing_line("waiting for the control plane to end"):
            local_server.wait_until_gone(server)
    except KeyboardInterrupt as error:
        message = "Interrupted. The control plane goes on stopping; `multinode server status` shows whether it has."
        raise Interrupted(message) from error


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
def migrate(session: Session, database: _Database = None, data_dir: _DataDir = None) -> Answer:
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
    data_dir: _DataDir = None,
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
