"""What the control plane is told by its options and environment, read once, checked, frozen.

Each option ``--some-name`` has the environment variable ``MULTINODE_SOME_NAME``; the option wins.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from multinode.errors import InputError
from multinode.limits import IDEMPOTENCY_WINDOW_S
from multinode_control_plane import ecs_settings, prices
from multinode_control_plane.ecs_settings import EcsSettings
from multinode_control_plane.tls import Certificate

DEFAULT_PORT = 9470
LOG_FORMATS = ("text", "json")
RUNNERS = ("auto", "process", "docker", "ecs")
ECR = "ecr"
"""Begins a --registry that is a repository of AWS."""
MIN_OPEN_REQUESTS = 10
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Capacity:
    """The machine's room: what all workers together may ask for."""

    cpu: float
    memory_mib: int


@dataclass(frozen=True)
class Settings:
    """Everything that can be set. Spans are in seconds, sizes in bytes where the name does not say otherwise."""

    home: Path
    data_dir: Path
    runner: str
    database: str = field(repr=False)
    """URL of the store. May hold a password: never shown."""
    host: str
    port: int | None
    """None: the usual one, or a free one where that is taken."""
    worker_url: str | None
    """Without a slash at its end."""
    capacity: Capacity
    """Until the runner is chosen: of this machine; with Docker, the engine's may be another (see `with_room_of`)."""
    asked_capacity: str | None = field(default=None, compare=False)
    allow_process: bool = False
    allow_http: bool = False
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which requests may call this server, without port."""
    registry: str | None = None
    """Where images are pushed to and pulled from: ``host[:port]/name``, or ``ecr:name``."""
    registry_create: bool = False
    """Whether a repository of ECR is made where it is missing."""
    registry_username: str | None = None
    registry_key: str | None = field(default=None, repr=False)
    ecs: EcsSettings | None = None
    """With the runner ``ecs`` alone."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    """Both or neither: PEM files of the certificate with which it speaks TLS, and of its key."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR) of the proxies whose X-Forwarded headers are believed."""
    admin_key_file: Path | None = None
    """Holds the key ``admin``; without it one is made in the data folder."""
    admin_key: str | None = field(default=None, repr=False)
    """The key ``admin`` itself, where a variable has it instead of a file."""
    secret_key_from: str | None = None
    """Where the keys of `.env` values are (see `secret_keys`); without it, ``secret.key`` in the data folder."""
    prices: Path | None = None
    """The table of what workers cost (see `prices`); without it, the default one."""
    grace_s: float = 120.0
    silence_s: float = 30.0
    unreachable_s: float = 300.0
    max_open_requests: int = 10_000
    """With one key; each worker's token has as many."""
    log_format: str = "text"
    """Of the server's own log: `text` or `json`."""
    traces: bool = False
    """Whether OpenTelemetry's variables name where traces go."""
    keep_unused_s: float = 7 * 24 * 3600.0
    keep_audit_s: float = 400 * 24 * 3600.0
    keep_costs_s: float = 400 * 24 * 3600.0
    """Of lines of the audit log, and of costs; 0: for ever."""
    keep_invocations_s: float = 30 * 24 * 3600.0
    """Of invocations, from their end; 0: for ever."""
    stop_delay_s: float = 0.0
    max_values: int = 100_000
    max_values_bytes: int = 256 * 1024 * 1024
    log_limit_bytes: int = 64 * 1024 * 1024
    disk_limit_bytes: int = 20 * 1024**3
    """Of what is stored and nothing needs: unused environments, images and bundles, and output of what has ended."""

    @property
    def certificate(self) -> Certificate | None:
        """None: plain HTTP."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return Certificate(self.tls_cert, self.tls_key)

    @property
    def lock_dir(self) -> Path:
        """The folder that one process holds: the data folder, which several that share a database may share too."""
        return self.data_dir if self.database.startswith("sqlite:") else self.home

    def options(self) -> dict[str, object]:
        """What `server restart` needs to start the same again, without secrets: those come from the environment anew."""
        given = {
            _OPTIONS.get(name, name): str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
            if name not in ("asked_capacity", "registry_key", "admin_key", "traces", "ecs")
        }
        if self.ecs is not None:
            given |= {f"ecs_{name}": value for name, value in asdict(self.ecs).items()}
        return {**given, "database": without_password(self.database)}

    def with_room_of(self, runner: str, whole: Capacity) -> Settings:
        """These settings for the runner that was chosen, on a machine (or engine) of this room."""
        return replace(self, runner=runner, capacity=_capacity(self.asked_capacity, whole))


_OPTIONS = {"disk_limit_bytes": "disk_limit"}
"""Settings that are not called as their options."""
_SPANS = {
    "grace": "seconds that a cancelled or timed out function has to clean up",
    "silence": "seconds without a word from a worker before the runner is asked for it",
    "unreachable": "seconds of silence of a worker that lives before it is stopped",
    "stop_delay": "seconds that a server which was told to end serves on, while /readyz says that it is not ready",
    "keep_audit": "seconds that lines of the audit log are kept; 0 keeps all",
    "keep_costs": "seconds that costs of what has ended are kept; 0 keeps all",
    "keep_invocations": "seconds that invocations are kept after their end, with values and output; 0 keeps all",
    "keep_unused": "seconds that environments, images and bundles which no version uses are kept",
}
_SIZES = {
    "max_values": "newest yielded values that an invocation keeps",
    "max_values_bytes": "bytes of yielded values that an invocation keeps",
    "log_limit_bytes": "bytes of output that an execution keeps",
    "max_open_requests": "requests that may be open with one key at a time",
}


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m multinode_control_plane``."""
    made = argparse.ArgumentParser(
        prog="multinode server run", description="Run the Multinode control plane in this process."
    )
    made.add_argument("--home", help="MULTINODE_HOME, ~/.multinode without it")
    made.add_argument(
        "--runner", help="auto, process, docker or ecs; auto is docker where an engine answers"
    )
    made.add_argument(
        "--database", help="URL of the store; an SQLite file in the data folder without it"
    )
    made.add_argument("--host", help="address to listen on; 127.0.0.1 without it")
    made.add_argument("--port", help=f"port to listen on; {DEFAULT_PORT} without it, or a free one")
    made.add_argument(
        "--data-dir", help="folder of everything that is stored; HOME/server without it"
    )
    made.add_argument("--worker-url", help="how workers reach this server; its own URL without it")
    made.add_argument("--capacity", help="room for workers, e.g. cpu=4,memory=8GiB")
    made.add_argument(
        "--registry",
        help="where images are pushed to and pulled from, e.g. registry.example.com/multinode, or ecr:multinode",
    )
    made.add_argument(
        "--registry-username", help="its user; MULTINODE_REGISTRY_KEY is the password or token"
    )
    made.add_argument(
        "--registry-create",
        action="store_true",
        default=None,
        help="make the ECR repository of --registry ecr:NAME where it is missing",
    )
    made.add_argument(
        "--allow-process",
        action="store_true",
        default=None,
        help=(
            "run functions as processes of this user although the server listens beyond loopback"
        ),
    )
    made.add_argument(
        "--allow-http",
        action="store_true",
        default=None,
        help="speak plain HTTP beyond loopback, where nobody is named who speaks TLS",
    )
    made.add_argument(
        "--allowed-hosts",
        help="further names that the Host header may have, e.g. multinode.example.com,10.0.0.5",
    )
    made.add_argument("--tls-cert", help="PEM file of the certificate with which it speaks TLS")
    made.add_argument("--tls-key", help="PEM file of the certificate's key")
    made.add_argument(
        "--trusted-proxies",
        help="proxies whose X-Forwarded-For is believed, addresses or networks, e.g. 127.0.0.1,10.0.0.0/8",
    )
    made.add_argument(
        "--admin-key-file",
        help="file (0600) with the key of the name admin; without it one is made in the data folder",
    )
    made.add_argument(
        "--secret-key-from",
        help="where the keys of .env values are: file:PATH, env:NAME or aws:SECRET_ID; without it, in the data folder",
    )
    made.add_argument(
        "--disk-limit",
        help="how much is kept that nothing needs, e.g. 20GiB: unused environments, output of what has ended",
    )
    made.add_argument(
        "--prices", help="JSON file with what workers cost; AWS's public prices without it"
    )
    made.add_argument("--log-format", help="lines of its own log: text, or json")
    for name, meaning in ecs_settings.OPTIONS.items():
        made.add_argument(f"--{name.replace('_', '-')}", help=f"with --runner ecs: {meaning}")
    for name, meaning in ecs_settings.SWITCHES.items():
        option = f"--{name.replace('_', '-')}"
        told = f"with --runner ecs: {meaning}"
        made.add_argument(option, action="store_true", default=None, help=told)
    for name, meaning in {**_SPANS, **_SIZES}.items():
        made.add_argument(f"--{name.replace('_', '-')}", help=meaning)
    made.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    made.add_argument("--log-file", help=argparse.SUPPRESS)
    made.add_argument("--only-check", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--foreground", action="store_true", help=argparse.SUPPRESS)
    return made


def resolve(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings. Raises InputError, naming the option, where one cannot be read."""

    def given(name: str) -> str | None:
        value: str | None = getattr(options, name)
        if value is None:
            value = environ.get(f"MULTINODE_{name.upper()}") or None
        return value

    home = Path(given("home") or Path.home() / ".multinode").expanduser().absolute()
    data_dir = Path(given("data_dir") or home / "server").expanduser().absolute()
    runner = given("runner") or "auto"
    if runner not in RUNNERS:
        message = f"The runner {runner!r} is not part of this release."
        raise InputError(message, f"Use one of: {', '.join(RUNNERS)}.")
    spans = {f"{name}_s": _number(name, given(name)) for name in _SPANS if given(name)}
    sizes = {name: int(_number(name, given(name))) for name in _SIZES if given(name)}
    settings = Settings(
        home=home,
        data_dir=data_dir,
        runner=runner,
        database=_database(given("database"), environ, data_dir),
        host=given("host") or "127.0.0.1",
        port=_port(given("port")),
        worker_url=_url(given("worker_url")),
        capacity=_capacity(given("capacity"), whole_machine()),
        asked_capacity=given("capacity"),
        registry=_registry(given("registry")),
        registry_create=_switch(given("registry_create")),
        registry_username=given("registry_username"),
        registry_key=environ.get("MULTINODE_REGISTRY_KEY") or None,
        disk_limit_bytes=_size(given("disk_limit")),
        allow_process=_switch(given("allow_process")),
        allow_http=_switch(given("allow_http")),
        allowed_hosts=_hosts(given("allowed_hosts")),
        ecs=ecs_settings.resolve(given, is_chosen=runner == "ecs"),
        tls_cert=_file(given("tls_cert")),
        tls_key=_file(given("tls_key")),
        trusted_proxies=_networks(given("trusted_proxies")),
        admin_key_file=_file(given("admin_key_file")),
        admin_key=environ.get("MULTINODE_ADMIN_KEY") or None,
        secret_key_from=_secret_key_from(given("secret_key_from")),
        prices=_file(given("prices")),
        traces=_has_traces(environ),
        log_format=_log_format(given("log_format")),
        **spans,  # type: ignore[arg-type]  # names and types are those of _SPANS and _SIZES
        **sizes,
    )
    check_certificate(settings)
    check_open_requests(settings)
    check_retention(settings)
    prices.read(settings.prices)  # says what is wrong with it, if anything is
    _check_registry(settings)
    _check_ecs(settings)
    if settings.runner == "process":
        check_isolation(settings)
    check_privacy(settings)
    return settings


def _file(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser().absolute()


def _secret_key_from(text: str | None) -> str | None:
    """Raises InputError without showing the text: it may be a key that somebody gave in place of where it is."""
    if text is None:
        return None
    kind, _, place = text.partition(":")
    if kind == "file" and place:
        return f"file:{Path(place).expanduser().absolute()}"
    is_variable = kind == "env" and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", place)
    if is_variable or (kind == "aws" and place):
        return text
    message = "--secret-key-from names no place of keys."
    raise InputError(message, "Write it like file:PATH, env:NAME or aws:SECRET_ID.")


def _has_traces(environ: Mapping[str, str]) -> bool:
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(map(environ.get, names)) and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def _log_format(text: str | None) -> str:
    if text is not None and text not in LOG_FORMATS:
        message = f"--log-format {text!r} is no format of log lines."
        raise InputError(message, f"Use one of: {', '.join(LOG_FORMATS)}.")
    return text or LOG_FORMATS[0]


def _database(text: str | None, environ: Mapping[str, str], data_dir: Path) -> str:
    """The URL, with the password of ``MULTINODE_DATABASE`` where that is the same one but for it."""
    if text is None:
        return f"sqlite:///{data_dir / 'multinode.sqlite'}"
    whole = environ.get("MULTINODE_DATABASE", "")
    if text == without_password(whole):
        text = whole
    shown = without_password(text)
    try:
        parts = urlsplit(text)
        is_right = parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1
        is_right = is_right and parts.port != 0
    except ValueError:  # the port
        is_right = False
    if not is_right and not text.startswith("sqlite:///"):
        message = f"--database {shown!r:.200} is not the URL of a database."
        hint = "Write it like postgresql://user@host:5432/name or sqlite:////path/to/file."
        raise InputError(message, hint)
    return text


def without_password(url: str) -> str:
    """The URL of a database as it may be shown."""
    head, at, rest = url.rpartition("@")
    scheme, slashes, user = head.partition("://")
    shown = f"{scheme}{slashes}{user.partition(':')[0]}{at}{rest}" if at else url
    return re.sub(r"([?&])(password|sslpassword|passfile)=[^&]*", r"\1\2=…", shown)


def check_certificate(settings: Settings) -> None:
    """Raises InputError for half of a certificate, and for one that cannot be used."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        message = "--tls-cert and --tls-key belong together: one of them is missing."
        raise InputError(message, "Give both, or neither for plain HTTP.")
    if settings.certificate is not None:
        settings.certificate.check()


def check_open_requests(settings: Settings) -> None:
    """Raises InputError for so few that a worker could not do its work: it reports while it waits for orders."""
    if settings.max_open_requests < MIN_OPEN_REQUESTS:
        message = (
            f"--max-open-requests {settings.max_open_requests} is too few: "
            "a worker alone has several open at a time."
        )
        raise InputError(message, f"Give {MIN_OPEN_REQUESTS} or more.")


def check_retention(settings: Settings) -> None:
    """Raises InputError where what has ended would go while its idempotency key, or its worker's last report, still counts."""
    if 0 < settings.keep_invocations_s < IDEMPOTENCY_WINDOW_S:
        message = (
            f"--keep-invocations {settings.keep_invocations_s:g} is too short: "
            "an idempotency key counts for 24 hours."
        )
        raise InputError(
            message, f"Give {IDEMPOTENCY_WINDOW_S:.0f} seconds or more, or 0 to keep all."
        )


def check_isolation(settings: Settings) -> None:
    """Raises InputError where the process runner would serve others than this machine without being told to."""
    if settings.host not in LOOPBACK and not settings.allow_process:
        message = (
            f"The process runner isolates nothing, and {settings.host} is not a loopback address: "
            "whoever has a key could run code as this user."
        )
        raise InputError(
            message, "Use --host 127.0.0.1, or --allow-process if that is what you want."
        )


def check_privacy(settings: Settings) -> None:
    """Raises InputError where keys would pass beyond this machine in plain HTTP without that being wanted."""
    if is_open_to_readers(settings) and not settings.allow_http:
        message = (
            f"{settings.host} is not a loopback address, and in plain HTTP whoever is on the way "
            "reads keys and values."
        )
        hint = (
            "Give it a certificate (--tls-cert and --tls-key), name the proxy with TLS that stands before it "
            "(--trusted-proxies), or say --allow-http where all of the network may read them."
        )
        raise InputError(message, hint)


def is_open_to_readers(settings: Settings) -> bool:
    """Whether keys pass in plain HTTP beyond this machine, as far as can be known: what is between a proxy and its clients cannot."""
    is_plain = settings.certificate is None and not settings.trusted_proxies
    return is_plain and settings.host not in LOOPBACK


def whole_machine() -> Capacity:
    """The room of this machine."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return room(os.cpu_count() or 1, memory_bytes >> 20)


def whole_account() -> Capacity:
    """The room of an AWS account: its quota of Fargate vCPUs is not known here. What goes beyond it waits."""
    return Capacity(cpu=100.0, memory_mib=800 * 1024)


def room(cores: int, memory_mib: int) -> Capacity:
    """Twice the cores and 80 % of the memory: functions mostly wait, and the rest of the machine lives too."""
    return Capacity(cpu=2.0 * cores, memory_mib=int(memory_mib * 0.8))


def _capacity(text: str | None, whole: Capacity) -> Capacity:
    found: dict[str, float] = {"cpu": whole.cpu, "memory": float(whole.memory_mib)}
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"\s*(cpu|memory)\s*=\s*([0-9.]+)\s*(MiB|GiB)?\s*", part)
        if not match or (match[1] == "cpu") == bool(match[3]):
            message = f"The capacity {text!r} cannot be read."
            raise InputError(message, "Write it like cpu=4,memory=8GiB.")
        found[match[1]] = _number("capacity", match[2]) * (1024 if match[3] == "GiB" else 1)
    return Capacity(cpu=found["cpu"], memory_mib=int(found["memory"]))


def host_name(text: str) -> str | None:
    """The host in a Host header: lower case, without port, brackets and final dot. None for what is no host."""
    match = _HOST.fullmatch(text.lower())
    return (match[1] or match[2]).rstrip(".") if match else None


_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]*[a-z0-9]\.?))(?::[0-9]{1,5})?")


def _hosts(text: str | None) -> tuple[str, ...]:
    names = [part.strip() for part in text.split(",") if part.strip()] if text else []
    for name in names:
        if host_name(name) is None:
            message = f"--allowed-hosts: {name!r} is not the name of a host."
            raise InputError(message, "Write it like multinode.example.com,10.0.0.5.")
    return tuple(dict.fromkeys(host_name(name) or "" for name in names))


def _networks(text: str | None) -> tuple[str, ...]:
    """Each as CIDR. Raises InputError for what is no address and no network."""
    found = []
    for part in filter(None, map(str.strip, text.split(",") if text else ())):
        try:
            found.append(str(ipaddress.ip_network(part)))
        except ValueError as error:
            message = f"--trusted-proxies: {part!r} is not an address or a network."
            raise InputError(message, "Write it like 127.0.0.1,10.0.0.0/8.") from error
    return tuple(dict.fromkeys(found))


def _url(text: str | None) -> str | None:
    """Raises InputError for what workers could not call."""
    if text is None:
        return None
    parts = urlsplit(text)
    try:
        is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port
        is_right = False
    if not is_right:
        message = f"--worker-url {text!r} is not the URL of a server."
        raise InputError(message, "Write it like http://10.0.0.5:9470.")
    return text.rstrip("/")


def _registry(text: str | None) -> str | None:
    """``host[:port]/name``, as image names begin: lower case, and no URL; or ``ecr:name``."""
    pattern = r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+"
    if text and text.startswith(f"{ECR}:"):
        pattern = rf"{ECR}:(?=.{{2,256}}$)[a-z0-9]+([._/-][a-z0-9]+)*"
    if text and not re.fullmatch(pattern, text):
        message = f"The registry {text!r} cannot be read."
        hint = (
            "Write it like registry.example.com/multinode, or ecr:multinode for a repository of AWS, "
            "whose name has 2 to 256 small letters and digits, with single . _ - / between them."
        )
        raise InputError(message, hint)
    return text


def _check_registry(settings: Settings) -> None:
    """Raises InputError for what does not go with the registry."""
    is_ecr = (settings.registry or "").startswith(f"{ECR}:")
    if is_ecr and (settings.registry_username or settings.registry_key):
        message = "The login of a repository of ECR comes from AWS: it has no user of its own."
        raise InputError(message, "Leave out --registry-username and MULTINODE_REGISTRY_KEY.")
    if settings.registry_create and not is_ecr:
        message = "MULTINODE_REGISTRY_CREATE makes repositories of ECR alone."
        raise InputError(message, "Leave it out, or give --registry ecr:NAME.")


_WORKER_URL_CURE = "Give the URL of its load balancer, or of this machine in the VPC."


def _check_ecs(settings: Settings) -> None:
    """Raises InputError where the runner ``ecs`` lacks what others have or do without."""
    if settings.ecs is None:
        return
    if not (settings.registry or "").startswith(f"{ECR}:"):
        message = "The runner ecs has its images in a repository of ECR."
        raise InputError(message, "Give --registry ecr:NAME.")
    if settings.worker_url is None:
        message = "The runner ecs needs --worker-url: how tasks reach this control plane."
        raise InputError(message, _WORKER_URL_CURE)
    if urlsplit(settings.worker_url).hostname in LOOPBACK:
        message = f"--worker-url {settings.worker_url!r:.200} leads a task to itself."
        raise InputError(message, _WORKER_URL_CURE)


def _size(text: str | None) -> int:
    """Bytes of ``20GiB``; a number alone is bytes."""
    if text is None:
        return Settings.disk_limit_bytes
    match = re.fullmatch(r"\s*([0-9.]+)\s*(|MiB|GiB|TiB)\s*", text)
    if match is None:
        message = f"--disk-limit {text!r} cannot be read."
        raise InputError(message, "Write it like 20GiB.")
    return int(_number("disk_limit", match[1]) * _UNITS[match[2]])


_UNITS = {"": 1, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


def _number(name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        message = f"--{name.replace('_', '-')} {text!r} is not a number that makes sense here."
        raise InputError(message, "Give a number of 0 or more.")
    return value


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    port = int(_number("port", text))
    if port > 65535:
        message = f"--port {text} is not a port."
        raise InputError(message, "Give a number from 0 (any free one) to 65535.")
    return port


def _switch(value: object) -> bool:
    return value is True or str(value).lower() in ("1", "true", "yes")
