"""The process: lock, store, runner, socket; comes up in order, goes down in order.

Nothing else may use the data folder while it runs: the lock on ``<data>/lock`` says so. Where it listens, and a key for this
user, are in ``$MULTINODE_HOME/server.json`` (0600) while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import (
    Conflict,
    InputError,
    MissingExtra,
    MultinodeError,
    StorageFull,
    StoreUnreachable,
)
from multinode_control_plane import admin_key, data_folder, migrations, model, prices
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.cancelling import cancel_children
from multinode_control_plane.api.routes import make_app
from multinode_control_plane.cluster import Cluster
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.leading import Leading
from multinode_control_plane.listening import (
    Serving,
    known_hosts,
    listen,
    local_door,
    own_url,
    peer_url,
)
from multinode_control_plane.local_state import FILE, Local
from multinode_control_plane.prices import Meter
from multinode_control_plane.runners import whole_files
from multinode_control_plane.runners.choice import choose
from multinode_control_plane.scheduler import Scheduler
from multinode_control_plane.secret_keys import source_of
from multinode_control_plane.server_log import ServerLog
from multinode_control_plane.service import access, invocations, pools, sealing
from multinode_control_plane.service.executions import Context
from multinode_control_plane.settings import Settings, is_open_to_readers, parser, resolve
from multinode_control_plane.store import Store
from multinode_control_plane.telemetry import log_lines

if TYPE_CHECKING:
    from multinode_control_plane.telemetry.tracing import Tracing

log = logging.getLogger("multinode")

LOCAL_KEY = "local"
SWITCH_S = 0.0005


@dataclass
class Stop:
    """Which kind of stop was asked for. A later, stronger one replaces an earlier one.

    ``hurry`` is called for one that waits for nothing.
    """

    hurry: Callable[[], None]
    event: asyncio.Event = field(default_factory=asyncio.Event)
    mode: str = ""

    def ask(self, mode: str) -> None:
        """``drain``, ``now`` or ``restart``."""
        self.mode = mode
        self.event.set()
        if mode == "restart":
            self.hurry()


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
    # Else: each request that is passed on, and where each login of AWS was found.
    for name in ("httpx", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)


async def serve(settings: Settings, ready: Ready, *, foreground: bool) -> None:
    """Comes up, serves until it is asked to stop, goes down."""
    # The writer, the readers and the loop take turns: none waits 5 ms, Python's default, for another to let go.
    sys.setswitchinterval(SWITCH_S)
    store = Store(_ready_database(settings.database))
    store.open(asyncio.get_running_loop())
    stop = Stop(store.hurry)
    _handle_signals(stop, foreground=foreground)
    try:
        await _serve_store(store, settings, ready, stop, foreground=foreground)
    finally:
        store.close()


def _ready_database(url: str) -> Database:
    """The database with this release's schema. Raises StoreUnreachable where it does not answer."""
    database = open_database(url)
    try:
        migrations.prepare(database)
    except sa.exc.DBAPIError as error:
        raise database.translated(error) from error
    return database


async def _serve_store(
    store: Store, settings: Settings, ready: Ready, stop: Stop, *, foreground: bool
) -> None:
    local = Local(settings.data_dir / FILE)
    kept = local.runner if await store.read(_count_workers) else ""
    source = source_of(settings, os.environ)
    sealer = await store.write(lambda tx: sealing.open_sealer(tx, source))
    choice = await choose(settings, os.environ, kept)
    runner, settings = choice.runner, choice.settings
    await _ensure_local_key(store, local, _local_key_name(store, settings))
    await admin_key.ensure(store, settings.data_dir, settings.admin_key_file, settings.admin_key)
    listener = listen(settings, local.port)
    port = listener.getsockname()[1]
    url = own_url(settings, port)
    door = local_door(settings, local.local_port)
    local_url = door.url if door else url
    local.remember(port, None, runner.name, local_port=door.port if door else None)
    meter = Meter(prices.read(settings.prices), runner.tariff, runner.size_for)
    context = Context(settings, sealer, meter=meter)
    tracing = open_tracing() if settings.traces else None
    plane = ControlPlane(
        store,
        Scheduler(store, runner, context),
        runner,
        runner.bundles,
        context,
        stop.ask,
        store.database.name,
        tracing=tracing,
    )
    await plane.read_keys()
    leading, part = Leading(plane, local_url, port), Part(stop)
    cluster = None
    if store.database.is_shared:
        cluster = Cluster(plane, leading, peer_url(settings, port), part.fall)
        await cluster.open()
    else:
        await leading.begin()
    plane.readiness.open()
    app, on_late = make_app(plane, known_hosts(settings)), plane.metrics.was_late
    serving = [Serving(app, listener, settings.certificate, on_late=on_late)]
    if door is not None:
        serving.append(Serving(make_app(plane, door.hosts), door.listener, on_late=on_late))
    try:
        if cluster is not None:
            await _first_of(cluster.settled, stop.event)
        if not stop.event.is_set():
            _write_server_file(settings, local_url, local.key, choice.reason, port)
            _tell_up(plane, url, choice.reason, ready, foreground=foreground)
        await _until_stopped(plane, stop, foreground=foreground)
        store.hurry()
        if cluster is not None:
            await cluster.hand_over()
        if not part.has_fallen:
            await _let_clients_go(stop, settings.stop_delay_s)
    finally:
        store.changes.fire_all()
        if cluster is not None:
            cluster.forward_no_more()
        for each in serving:
            await each.end()
        await leading.end()
        if cluster is not None:
            await cluster.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        _server_file_of(settings).unlink(missing_ok=True)
    part.check()


def _tell_up(plane: ControlPlane, url: str, reason: str, ready: Ready, *, foreground: bool) -> None:
    """Tells whoever started it, the log, and a person at the terminal."""
    settings = plane.context.settings
    ready.up(url)
    log.info("listening on %s", url)
    if is_open_to_readers(settings):
        log.warning(
            "%s is plain HTTP: whoever is on the way reads keys and values. "
            "Use --tls-cert and --tls-key, or a proxy with TLS and --trusted-proxies.",
            url,
        )
    why = f", {reason}" if reason else ""
    name = plane.runner.name
    log.info("runner: %s%s", name, why)
    follows = "" if plane.leads else ", another process leads"
    _say(
        foreground and settings.log_format == "text",
        f"Multinode control plane on {url} (runner: {name}{why}{follows}). Ctrl-C stops it.",
    )


async def _first_of(*events: asyncio.Event) -> None:
    """Waits until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


class Part:
    """Whether this process can still take part where several share a database, and why not."""

    def __init__(self, stop: Stop) -> None:
        self.has_fallen = False
        self._stop = stop
        self._error: BaseException | None = None

    def fall(self, error: BaseException | None) -> None:
        """It has to end; ``error`` is None where another has taken over from it."""
        self.has_fallen, self._error = True, error
        self._stop.ask("restart")

    def check(self) -> None:
        """Raises why it had to end."""
        if self._error is not None:
            raise self._error
        if self.has_fallen:
            message = (
                "Another control plane has taken over: this one had not been heard for too long."
            )
            raise Conflict(message, "Start it again: it takes part again then.")


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


async def _until_stopped(plane: ControlPlane, stop: Stop, *, foreground: bool) -> None:
    """Until nothing runs any more (`drain`, `now`), or at once (`restart`)."""
    await stop.event.wait()
    plane.readiness.drain("It was asked to stop.")
    if not plane.leads:  # what runs is another process's
        return
    done = ""
    while stop.mode != "restart":
        mode = stop.mode
        stop.event.clear()
        plane.scheduler.draining = True
        try:
            await plane.store.write(pools.dismiss_all)
            if mode == "now" and done != "now":
                running = await plane.store.read(invocations.running)
                await cancel_children(plane.store, running, None)
                await plane.store.write(invocations.cancel_running)
            done = mode
            if await _has_run_out(plane, stop, foreground=foreground):
                return
        except StoreUnreachable as error:  # it waits for what runs, and so for that too
            log.warning("what runs cannot be seen: %s", error.message)


async def _has_run_out(plane: ControlPlane, stop: Stop, *, foreground: bool) -> bool:
    """Whether no worker is left. Where some are, it returns when one has gone, or another stop was asked for."""
    with plane.store.changes.subscribe("workers") as event:
        left = await plane.store.read(_count_workers)
        if left == 0:
            return True
        is_text = plane.context.settings.log_format == "text"
        _say(
            foreground and is_text,
            f"Waiting for {left} running invocations; Ctrl-C cancels them.",
        )
        log.info("waiting for %d running invocations", left)
        await _first_of(event, stop.event)
    return False


async def _let_clients_go(stop: Stop, delay_s: float) -> None:
    """Serves on while `/readyz` and each answer send clients elsewhere; a second signal ends that."""
    stop.event.clear()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.event.wait(), delay_s)


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


def _local_key_name(store: Store, settings: Settings) -> str:
    """The same each time; where machines share the database, each data folder has one of its own."""
    if not store.database.is_shared:
        return LOCAL_KEY
    place = f"{socket.gethostname()}:{settings.data_dir}"
    return f"{LOCAL_KEY}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


async def _ensure_local_key(store: Store, local: Local, name: str) -> None:
    known = await store.read(access.key_ring)
    if local.key is not None and known.find(local.key) is not None:
        return

    def renew(tx: Any) -> wire.KeyInfo:
        tx.connection.execute(sa.delete(model.keys).where(model.keys.c.name == name))
        return access.create_key(tx, wire.KeyRequest(name, "admin"))

    local.key = (await store.write(renew)).key


def _server_file_of(settings: Settings) -> Path:
    return settings.home / "server.json"


def _write_server_file(
    settings: Settings, url: str, key: str | None, reason: str, port: int
) -> None:
    """``url`` is for this machine; ``port`` is that of the first listener, which others use."""
    content = _server_file(settings, url, key, reason)
    content["port"] = port
    whole_files.write(_server_file_of(settings), _json(content))


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
