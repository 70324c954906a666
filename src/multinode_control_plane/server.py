"""The process: lock, store, runner, socket; comes up in order, goes down in order.

Nothing else may use the data folder while it runs: the lock on ``<data>/lock`` says so. Where it listens, and a key for this
user, are in ``$MULTINODE_HOME/server.json`` (0600) while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import uvicorn

from multinode import wire
from multinode.errors import (
    Conflict,
    InputError,
    MissingExtra,
    MultinodeError,
    StorageFull,
)
from multinode_control_plane import admin_key, data_folder, migrations, model
from multinode_control_plane.api.border import Border, KnownHosts
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.installation import collect
from multinode_control_plane.api.routes import WORKER_ENDPOINTS, make_app
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.leadership import Leadership
from multinode_control_plane.runners import Runner, whole_files
from multinode_control_plane.runners.choice import choose
from multinode_control_plane.runners.storage import size
from multinode_control_plane.scheduler import Scheduler
from multinode_control_plane.server_log import ServerLog
from multinode_control_plane.service import access, invocations
from multinode_control_plane.service.dotenv import load_sealer
from multinode_control_plane.service.executions import Context
from multinode_control_plane.service.leaders import Leader
from multinode_control_plane.settings import DEFAULT_PORT, LOOPBACK, Settings, parser, resolve
from multinode_control_plane.store import Store
from multinode_control_plane.telemetry import log_lines

if TYPE_CHECKING:
    from multinode_control_plane.telemetry.tracing import Tracing

log = logging.getLogger("multinode")

LOCAL_KEY = "local"
SWITCH_S = 0.0005
COLLECT_S = 600.0
"""Output may grow by much meanwhile."""
KEEP_ALIVE_S = 75
"""Longer than clients leave a connection idle, so that it is rarely closed under a request."""


@dataclass
class Stop:
    """Which kind of stop was asked for. A later, stronger one replaces an earlier one."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    mode: str = ""

    def ask(self, mode: str) -> None:
        """``drain``, ``now`` or ``restart``."""
        self.mode = mode
        self.event.set()


class HttpServer(uvicorn.Server):
    """uvicorn's server without its signal handlers, and without its loop that wakes ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `serve`."""
        yield

    async def main_loop(self) -> None:
        """Until `end`."""
        await self.ended.wait()

    def end(self) -> None:
        """Stops accepting, answers what is open, then returns from ``serve``."""
        self.should_exit = True
        self.ended.set()


class _Serving:
    """An application that is served on a socket, from now until `end`."""

    def __init__(self, app: Border, listener: socket.socket) -> None:
        self._http = HttpServer(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                date_header=False,
                server_header=False,
                proxy_headers=False,
                http="httptools",
                ws="none",
                loop="asyncio",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=5,
                backlog=2048,
            )
        )
        self._serving = asyncio.get_running_loop().create_task(self._http.serve([listener]))

    async def end(self) -> None:
        """Answers what is open, and serves no more."""
        self._http.end()
        await self._serving


def main(argv: list[str] | None = None) -> int:
    """Runs the control plane. Returns the process's exit code."""
    options = parser().parse_args(argv)
    ready = Ready(options.ready_fd)
    try:
        settings = resolve(options, os.environ)
        if options.only_check:
            ready.up("")
            return 0
        data_folder.prepare(settings.data_dir)
        data_folder.prepare(settings.lock_dir)
        with data_folder.locked(settings.lock_dir):
            _log_to(options.log_file, settings.log_format, foreground=options.foreground)
            asyncio.run(serve(settings, ready, foreground=options.foreground))
    except (MultinodeError, OSError) as raised:
        error = _told(raised)
        ready.failed(error)
        # As the commands tell theirs, for `server run` becomes this process.
        print(f"error: {error.message}\n{error.hint}".rstrip(), file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, InputError) else 1
    return 0


def _told(error: MultinodeError | OSError) -> MultinodeError:
    """The error for people. Raises any but a full disk's that is none."""
    if isinstance(error, MultinodeError):
        return error
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    message = "The control plane's disk is full: it cannot start."
    return StorageFull(message, "Free some space where its data folder lies, then try again.")


class Ready:
    """Tells whoever started this process, through a pipe, that it is up, or why it is not."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def up(self, url: str) -> None:
        """It listens on ``url``."""
        self._tell({"url": url})

    def failed(self, error: MultinodeError) -> None:
        """It does not come up."""
        self._tell({"error": {"code": error.code, "message": error.message, "hint": error.hint}})

    def _tell(self, what: dict[str, Any]) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps(what).encode() + b"\n")
            os.close(self._descriptor)
        self._descriptor = None


def _log_to(path: str | None, log_format: str, *, foreground: bool) -> None:
    """In a terminal a person is told the usual in other words (`_say`), and the log is for what is not."""
    handler = ServerLog(Path(path)) if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_lines.formatter(log_format))
    is_read_by_people = foreground and log_format == "text"
    level = logging.WARNING if is_read_by_people else logging.INFO
    logging.basicConfig(level=level, handlers=[handler])


async def serve(settings: Settings, ready: Ready, *, foreground: bool) -> None:
    """Comes up, serves until it is asked to stop, goes down."""
    # The writer, the readers and the loop take turns: none waits 5 ms, Python's default, for another to let go.
    sys.setswitchinterval(SWITCH_S)
    store = Store(_ready_database(settings.database))
    store.open(asyncio.get_running_loop())
    stop = Stop()
    _handle_signals(stop, foreground=foreground)
    try:
        if not store.database.is_shared:
            await _serve_store(store, settings, ready, stop, foreground=foreground)
        else:
            await _serve_as_leader(store, settings, ready, stop, foreground=foreground)
    finally:
        store.close()


async def _serve_as_leader(
    store: Store, settings: Settings, ready: Ready, stop: Stop, *, foreground: bool
) -> None:
    """Waits until this process leads, and serves. Raises Conflict when another has taken over."""
    is_deposed = asyncio.Event()

    def depose() -> None:
        is_deposed.set()
        stop.ask("restart")

    def wait(seen: Leader) -> None:
        _write_server_file(settings, "", None, "")
        ready.up("")
        log.info("another process leads (%s): this one waits", seen.url)
        _say(foreground, f"{seen.url or 'Another process'} leads; this one waits to take over.")

    leadership = Leadership(store, depose)
    try:
        if await leadership.wait(wait, stop.event):
            await _serve_store(
                store, settings, ready, stop, foreground=foreground, leadership=leadership
            )
    finally:
        _server_file_of(settings).unlink(missing_ok=True)
        await leadership.release()
    if is_deposed.is_set():
        message = "Another control plane has taken over: this one had not been heard for too long."
        raise Conflict(message, "Start it again: it waits then, to take over in its turn.")


def _ready_database(url: str) -> Database:
    """The database with this release's schema. Raises StoreUnreachable where it does not answer."""
    database = open_database(url)
    try:
        migrations.prepare(database)
    except sa.exc.DBAPIError as error:
        raise database.translated(error) from error
    return database


async def _serve_store(
    store: Store,
    settings: Settings,
    ready: Ready,
    stop: Stop,
    *,
    foreground: bool,
    leadership: Leadership | None = None,
) -> None:
    local = Local(settings.data_dir / "local.json")
    kept = local.runner if await store.read(_count_workers) else ""
    choice = await choose(settings, os.environ, kept)
    runner, settings = choice.runner, choice.settings
    await _ensure_local_key(store, local)
    await admin_key.ensure(store, settings.data_dir, settings.admin_key_file)
    listener = listen(settings, local.port)
    port = listener.getsockname()[1]
    url = f"http://{_in_url(settings.host)}:{port}"
    door = await _worker_door(settings, runner, local)
    local.remember(port, door.port if door else None, runner.name)
    context = Context(settings, load_sealer(settings.data_dir / "secret.key"))
    scheduler = Scheduler(store, runner, context)
    if leadership is not None:
        leadership.url = url
    tracing = open_tracing() if settings.traces else None
    plane = ControlPlane(
        store,
        scheduler,
        runner,
        runner.bundles,
        context,
        stop.ask,
        store.database.name,
        tracing=tracing,
    )
    await plane.read_keys()
    await scheduler.open(settings.worker_url or (door.url if door else url))
    plane.readiness.open()
    plane.metrics.leader.set(1)
    servers = [_Serving(make_app(plane, known_hosts(settings)), listener)]
    if door is not None:
        servers.append(_Serving(make_app(plane, door.hosts, WORKER_ENDPOINTS), door.listener))
    collecting = asyncio.get_running_loop().create_task(_collect_regularly(plane))
    _write_server_file(settings, url, local.key, choice.reason)
    ready.up(url)
    log.info("listening on %s", url)
    why = f", {choice.reason}" if choice.reason else ""
    log.info("runner: %s%s", runner.name, why)
    _say(
        foreground and settings.log_format == "text",
        f"Multinode control plane on {url} (runner: {runner.name}{why}). Ctrl-C stops it.",
    )
    try:
        await _until_stopped(plane, stop, foreground=foreground)
        await _let_clients_go(stop, settings.stop_delay_s)
    finally:
        collecting.cancel()
        store.changes.fire_all()
        for serving in servers:
            await serving.end()
        await scheduler.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        _server_file_of(settings).unlink(missing_ok=True)


def open_tracing() -> Tracing:
    """Sends traces from now on. Raises MissingExtra where OpenTelemetry is not installed."""
    try:
        from multinode_control_plane.telemetry.tracing import Tracing
    except ImportError as error:
        message = f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed here ({error})."
        raise MissingExtra(
            message,
            "Install it with: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http "
            "(Multinode's extra [otel]), or unset the variable.",
        ) from error
    return Tracing()


async def _collect_regularly(plane: ControlPlane) -> None:
    """Removes what no version has used for long, and what is over the disk limit."""
    while True:
        await asyncio.sleep(COLLECT_S)
        try:
            unused_s = plane.context.settings.keep_unused_s
            done = await collect(plane, unused_s=unused_s, dry_run=False)
            if done:
                log.info("removed what nothing needs: %s", "; ".join(map(_in_words, done)))
        except Exception:  # the outermost edge: the next time it is tried again
            log.exception("what nothing needs could not be removed")


def _in_words(item: wire.Collected) -> str:
    """For the log."""
    return (
        f"{item.kind} {item.name:.19}, {size(item.size_bytes)}, {item.reason} {item.note}".strip()
    )


async def _until_stopped(plane: ControlPlane, stop: Stop, *, foreground: bool) -> None:
    """Until nothing runs any more (`drain`, `now`), or at once (`restart`)."""
    await stop.event.wait()
    plane.readiness.drain("It was asked to stop.")
    done = ""
    while stop.mode != "restart":
        stop.event.clear()
        if stop.mode != done:
            done = stop.mode
            plane.scheduler.draining = True
            if done == "now":
                await plane.store.write(_cancel_everything)
        with plane.store.changes.subscribe("workers") as event:
            left = await plane.store.read(_count_workers)
            if left == 0:
                return
            is_text = plane.context.settings.log_format == "text"
            _say(
                foreground and is_text,
                f"Waiting for {left} running invocations; Ctrl-C cancels them.",
            )
            log.info("waiting for %d running invocations", left)
            waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(stop.event.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


async def _let_clients_go(stop: Stop, delay_s: float) -> None:
    """Serves on while `/readyz` and each answer send clients elsewhere; a second signal ends that."""
    stop.event.clear()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.event.wait(), delay_s)


def _cancel_everything(tx: Any) -> None:
    found = tx.connection.execute(
        sa.select(model.invocations.c.invocation_id).where(
            model.invocations.c.finished_at.is_(None)
        )
    ).scalars()
    invocations.cancel(tx, list(found))


def _count_workers(connection: sa.Connection) -> int:
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(model.workers)
        .where(model.workers.c.gone_at.is_(None))
    ).scalar_one()


def _handle_signals(stop: Stop, *, foreground: bool) -> None:
    """SIGTERM leaves workers running, to be adopted; Ctrl-C drains, then cancels, then leaves them too."""
    loop = asyncio.get_running_loop()
    following = {"": "drain", "drain": "now", "now": "restart", "restart": "restart"}
    loop.add_signal_handler(signal.SIGTERM, stop.ask, "restart")
    if foreground:
        loop.add_signal_handler(signal.SIGINT, lambda: stop.ask(following[stop.mode]))
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(is_heard: bool, text: str) -> None:
    if is_heard:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - for the person at the terminal


# --- where it listens -----------------------------------------------------------------------------------


class Local:
    """This user's key and the port of last time, kept over restarts: who knows them stays connected. And its runner."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        self.key: str | None = known.get("key")
        self.port: int | None = known.get("port")
        self.worker_port: int | None = known.get("worker_port")
        self.runner: str = known.get("runner", "")

    def remember(self, port: int, worker_port: int | None, runner: str) -> None:
        """Writes all of it (0600); the port for workers is kept where there is none this time."""
        self.port, self.worker_port, self.runner = port, worker_port or self.worker_port, runner
        known = {
            "key": self.key,
            "port": port,
            "worker_port": self.worker_port,
            "runner": runner,
        }
        whole_files.write(self._path, _json(known))


async def _ensure_local_key(store: Store, local: Local) -> None:
    known = await store.read(access.key_ring)
    if local.key is not None and known.find(local.key) is not None:
        return

    def renew(tx: Any) -> wire.KeyInfo:
        tx.connection.execute(sa.delete(model.keys).where(model.keys.c.name == LOCAL_KEY))
        return access.create_key(tx, wire.KeyRequest(LOCAL_KEY, "admin"))

    local.key = (await store.write(renew)).key


def listen(settings: Settings, last_port: int | None) -> socket.socket:
    """A bound socket. A port that was asked for must be free; else that of last time, the usual one, or any."""
    if settings.port is not None:
        try:
            return _bind(settings.host, settings.port)
        except OSError as error:
            message = f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}."
            raise InputError(message, "Choose another --port, or leave it out.") from error
    for port in (last_port, DEFAULT_PORT):
        if port:
            with contextlib.suppress(OSError):
                return _bind(settings.host, port)
    try:
        return _bind(settings.host, 0)
    except OSError as error:
        message = f"Cannot listen on {settings.host!r}: {error.strerror}."
        raise InputError(message, "Use --host 127.0.0.1.") from error


@dataclass(frozen=True)
class WorkerDoor:
    """A second listener, for workers alone, where they cannot reach the first. ``name`` is how they reach it."""

    listener: socket.socket
    name: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        """What workers are told."""
        return f"http://{_in_url(self.name)}:{self.port}"

    @property
    def hosts(self) -> KnownHosts:
        """The host that workers name."""
        return KnownHosts(frozenset({self.name}))


async def _worker_door(settings: Settings, runner: Runner, local: Local) -> WorkerDoor | None:
    """The listener that the runner's workers need; None where they can use the first, or another server passes them on to it.

    It has the port of last time, which workers that live were told.
    """
    if settings.worker_url and runner.name != "process":
        return _door_at(settings.worker_url, settings.host)
    address = await runner.worker_address()
    if address is None:
        return None
    for port in (local.worker_port or 0, 0):
        try:
            return WorkerDoor(_bind(address.listen, port), address.name)
        except OSError as error:
            reason = error.strerror
    message = f"Cannot listen on {address.listen}, where {runner.name} workers would reach this server: {reason}."
    raise InputError(message, "Say how they reach it: --worker-url http://this-machine:port.")


def _door_at(worker_url: str, host: str) -> WorkerDoor | None:
    """A listener where a --worker-url points to, if that is an address of this machine, and the first is on loopback alone.

    Elsewhere (a name that only workers know, another machine, a port that something has) somebody passes it on.
    """
    parts = urlsplit(worker_url)
    name = parts.hostname or ""
    if host not in LOOPBACK or parts.scheme != "http":
        return None
    port = parts.port or 80
    try:
        listener = _bind(name, port)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno in (
            errno.EADDRNOTAVAIL,
            errno.EADDRINUSE,
        ):
            return None
        message = (
            f"Cannot listen on {name}:{port}, where workers reach this server: {error.strerror}."
        )
        raise InputError(message, "Choose another port for --worker-url.") from error
    if ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        listener.close()
        return None
    return WorkerDoor(listener, name)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY; without it an answer waits 40 ms for an ACK.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(2048)
    except OSError:
        made.close()
        raise
    return made


def known_hosts(settings: Settings) -> KnownHosts:
    """The hosts that are answered to: loopback and what the settings name; beyond loopback this machine's too."""
    names = {*LOOPBACK, *settings.allowed_hosts}
    if settings.worker_url:
        names.add((urlsplit(settings.worker_url).hostname or "").lower())
    is_loopback = settings.host in LOOPBACK
    if not is_loopback:
        machine = socket.gethostname().lower()
        names |= {settings.host.lower(), machine, machine.partition(".")[0]}
    return KnownHosts(frozenset(names - {""}), addresses=not is_loopback)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _server_file_of(settings: Settings) -> Path:
    return settings.home / "server.json"


def _write_server_file(settings: Settings, url: str, key: str | None, reason: str) -> None:
    """``url`` is empty while this process waits to lead."""
    whole_files.write(_server_file_of(settings), _json(_server_file(settings, url, key, reason)))


def _server_file(settings: Settings, url: str, key: str | None, reason: str) -> dict[str, Any]:
    return {
        "url": url,
        "key": key,
        "pid": os.getpid(),
        "started_at": model.to_time(time.time()),
        "lock": str(settings.lock_dir / "lock"),
        "runner": settings.runner,
        "runner_reason": reason,
        "options": settings.options(),
    }


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
