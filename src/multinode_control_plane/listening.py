"""Where this process is asked: sockets, the second door that workers have, the names that it answers to, and the serving itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

import uvicorn

from multinode.errors import InputError
from multinode_control_plane.api.border import Border, KnownHosts
from multinode_control_plane.patience import PatientProtocol
from multinode_control_plane.runners import Runner, WorkerAddress
from multinode_control_plane.settings import DEFAULT_PORT, LOOPBACK, Settings
from multinode_control_plane.tls import Certificate

KEEP_ALIVE_S = 75
"""Longer than clients leave a connection idle, so that it is rarely closed under a request."""


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


class Serving:
    """An application that is served on a socket, from now until `end`."""

    def __init__(
        self,
        app: Border,
        listener: socket.socket,
        certificate: Certificate | None = None,
        *,
        on_late: Callable[[str], None] = lambda what: None,
    ) -> None:
        """``on_late``: see `PatientProtocol`."""
        self._http = HttpServer(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                date_header=False,
                server_header=False,
                proxy_headers=False,
                http=partial(PatientProtocol, on_late=on_late),  # type: ignore[arg-type]  # uvicorn only calls it
                ws="none",
                loop="asyncio",
                timeout_keep_alive=KEEP_ALIVE_S,
                ssl_certfile=certificate.cert if certificate else None,
                ssl_keyfile=certificate.key if certificate else None,
                timeout_graceful_shutdown=5,
                backlog=2048,
            )
        )
        self._serving = asyncio.get_running_loop().create_task(self._http.serve([listener]))

    async def end(self) -> None:
        """Answers what is open, and serves no more."""
        self._http.end()
        await self._serving


def listen(settings: Settings, last_port: int | None) -> socket.socket:
    """A bound socket. A port that was asked for must be free; else that of last time, the usual one, or any."""
    if settings.port is not None:
        try:
            return bind(settings.host, settings.port)
        except OSError as error:
            message = f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}."
            raise InputError(message, "Choose another --port, or leave it out.") from error
    for port in (last_port, DEFAULT_PORT):
        if port:
            with contextlib.suppress(OSError):
                return bind(settings.host, port)
    try:
        return bind(settings.host, 0)
    except OSError as error:
        message = f"Cannot listen on {settings.host!r}: {error.strerror}."
        raise InputError(message, "Use --host 127.0.0.1.") from error


@dataclass(frozen=True)
class Door:
    """A second listener, for those who cannot use the first. ``name`` is how they reach it."""

    listener: socket.socket
    name: str

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        """What they are told."""
        return f"http://{in_url(self.name)}:{self.port}"

    @property
    def hosts(self) -> KnownHosts:
        """The host that they name."""
        return KnownHosts(frozenset({self.name}))


async def worker_door(
    settings: Settings, runner: Runner, last_port: int | None, *, is_shared: bool
) -> Door | None:
    """The listener that the runner's workers need; None where they can use the first, or another server passes them on to it.

    It has the port of last time, which workers that live were told. Where several processes share the database, each has a port
    of its own, and the one that leads has this one too.
    """
    if settings.worker_url and runner.name != "process":
        has_own = settings.host in LOOPBACK or settings.certificate is not None
        return door_at(settings.worker_url) if has_own else None
    address = await runner.worker_address()
    if address is None and is_shared and settings.worker_url is None:
        address = WorkerAddress(listen="127.0.0.1", name="127.0.0.1")
    if address is None:
        return None
    for port in (last_port or 0, 0):
        try:
            return Door(bind(address.listen, port), address.name)
        except OSError as error:
            reason = error.strerror
    message = f"Cannot listen on {address.listen}, where {runner.name} workers would reach this server: {reason}."
    raise InputError(message, "Say how they reach it: --worker-url http://this-machine:port.")


def local_door(settings: Settings, last_port: int | None) -> Door | None:
    """Where the first listener speaks TLS: one in plain HTTP, on loopback, for what runs on this machine. On the port of last time, if that is free.

    No certificate is for 127.0.0.1, and nothing on this machine has to know who vouches for it.
    """
    if settings.certificate is None:
        return None
    if last_port:
        with contextlib.suppress(OSError):
            return Door(bind("127.0.0.1", last_port), "127.0.0.1")
    return Door(bind("127.0.0.1", 0), "127.0.0.1")


def door_at(worker_url: str) -> Door | None:
    """A listener in plain HTTP where a --worker-url points to, if that is an address of this machine.

    Elsewhere (a name that only workers know, another machine, a port that something has) somebody passes it on.
    """
    parts = urlsplit(worker_url)
    name = parts.hostname or ""
    if parts.scheme != "http":
        return None
    port = parts.port or 80
    try:
        listener = bind(name, port)
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
    return Door(listener, name)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError."""
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


def in_url(host: str) -> str:
    """As a URL has it."""
    return f"[{host}]" if ":" in host else host


def own_url(settings: Settings, port: int) -> str:
    """Of the first listener."""
    return f"{'https' if settings.certificate else 'http'}://{in_url(settings.host)}:{port}"


def peer_url(settings: Settings, port: int) -> str:
    """Where other processes of this control plane reach this one."""
    is_every = settings.host in ("0.0.0.0", "::")  # noqa: S104, RUF100 - read, not bound
    return own_url(replace(settings, host=socket.gethostname()) if is_every else settings, port)
