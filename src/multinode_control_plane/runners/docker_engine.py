"""The Docker engine as the ``docker`` runner needs it: the one module here that knows the ``docker`` package.

Everything here blocks. What that package, and the transport below it, raise becomes an ``EngineError``, whose message says what
failed, and its hint what to do.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from multinode.errors import EngineUnavailable
from multinode.wire import Registry

if TYPE_CHECKING:
    from multinode_engine.connection import Connection

TIMEOUT_S = 60.0
"""How long an answer may take, streams apart."""
REGISTRY_TIMEOUT_S = 10.0
"""How long a registry may take to say whether it has an image."""
CONNECTIONS = 64
"""Kept open; each container's log takes one of its own while it is followed."""
_DISK_FULL_CURE = "Make room there: `multinode server gc`, and `docker system prune`."
_REGISTRY_CURE = (
    "Is the registry as the control plane's settings say, and does it answer the engine?"
)


class EngineError(Exception):
    """Something that the engine did not do. ``message`` is a sentence, ``hint`` another one on what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class EngineAway(EngineError):
    """No engine answers, it may not be used, or it went away in between: what was asked may have been done."""


class NotInEngine(EngineError):
    """There is no such container, image or network."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself."""

    url: str
    version: str
    platform: str
    """``linux/amd64``."""
    cores: int
    memory_mib: int
    root_dir: str
    """Where it keeps images and containers, on its machine."""
    is_desktop: bool
    """Docker Desktop: containers reach this machine's loopback as ``host.docker.internal``."""

    is_rootless: bool = False
    limits: tuple[str, ...] = ("cpu", "memory")
    """Which limits of a container it enforces."""

    @property
    def is_remote(self) -> bool:
        """Whether it may run on another machine."""
        return not self.url.startswith(("unix://", "http+unix://", "npipe://"))

    @property
    def is_apart(self) -> bool:
        """Whether nobody knows how its containers reach this machine: over there, or in a network of the user's own."""
        return not self.is_desktop and (self.is_remote or self.is_rootless)


@dataclass(frozen=True)
class ContainerState:
    """A container as the engine has it. ``status`` is ``created``, ``running``, ``exited``, …"""

    name: str
    labels: Mapping[str, str]
    status: str
    exit_code: int = 0
    is_out_of_memory: bool = False
    memory_mib: int = 0
    """Its limit."""

    @property
    def is_running(self) -> bool:
        """Whether processes of it live."""
        return self.status in ("running", "paused", "restarting")


@dataclass(frozen=True)
class ImageState:
    """An image that is in the engine."""

    image_id: str
    labels: Mapping[str, str]
    size_bytes: int
    tags: tuple[str, ...] = ()
    """Names by which it is known here."""
    digests: tuple[str, ...] = ()
    """``repository@sha256:…``: by which registries that it came from, or went to, know it."""
    created_at: float = 0.0
    """Unix time when it was made, or last given a name: one that is made of layers that are there already is as old as they."""


@dataclass(frozen=True)
class NetworkState:
    """A bridge network. ``gateway`` is this machine's address in it."""

    name: str
    subnet: str
    gateway: str


class Engine:
    """A connection to an engine; from any thread."""

    def __init__(self, connection: Connection, facts: EngineFacts) -> None:
        self._connection = connection
        self._api = connection.api
        self.facts = facts

    @classmethod
    def connect(cls, environ: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> Engine:
        """The engine, once it has answered. Raises EngineAway where none does within ``timeout_s``, or it is too old."""
        # Not at the top: it costs 60 ms, and only this runner needs it.
        from multinode_engine.connection import connect

        try:
            connection = connect(environ, timeout_s=timeout_s, connections=CONNECTIONS)
        except EngineUnavailable as error:
            raise EngineAway(error.message, error.hint) from error
        try:
            facts = _facts(connection)
        except EngineError:
            connection.close()
            raise
        connection.api.timeout = TIMEOUT_S
        return cls(connection, facts)

    def facts_of(self) -> EngineFacts:
        """The facts as they are now. Raises EngineAway."""
        return _facts(self._connection)

    def close(self) -> None:
        """Lets go of its connections."""
        self._connection.close()

    # --- containers ------------------------------------------------------------------------------------

    def create(self, name: str, config: Mapping[str, Any]) -> None:
        """Makes a container from the engine's own JSON. Raises NotInEngine where its image is not there."""
        with _told(f"The container {name} could not be made."):
            self._api.create_container_from_config(dict(config), name)

    def put(self, name: str, folder: str, archive: bytes) -> None:
        """Unpacks a tar archive into a container that was made; the folder has to be a volume."""
        with _told(f"The container {name} could not be given its launch."):
            self._api.put_archive(name, folder, archive)

    def start(self, name: str) -> None:
        """Starts a container that was made."""
        with _told(f"The container {name} could not be started."):
            self._api.start(name)

    def limit_cpu(self, name: str, limit: Mapping[str, int]) -> None:
        """Changes how much cpu a container that runs has: ``CpuQuota`` in each ``CpuPeriod``. Raises NotInEngine."""
        with _told(f"The cpu of the container {name} could not be limited."):
            self._api.update_container(
                name, cpu_quota=limit["CpuQuota"], cpu_period=limit["CpuPeriod"]
            )

    def kill(self, name: str, signal: str) -> None:
        """Sends a signal; nothing happens where it does not run any more."""
        with suppress(NotInEngine), _told(f"The container {name} could not be sent {signal}."):
            self._api.kill(name, signal)

    def remove(self, name: str) -> None:
        """Kills and removes a container with its volumes; one that is gone is no error."""
        with suppress(NotInEngine), _told(f"The container {name} could not be removed."):
            self._api.remove_container(name, v=True, force=True)

    def container(self, name: str) -> ContainerState:
        """A container by its name. Raises NotInEngine."""
        with _told(f"The container {name} could not be looked at."):
            found = self._api.inspect_container(name)
        state = found["State"]
        return ContainerState(
            name=name,
            labels=found["Config"]["Labels"] or {},
            status=state["Status"],
            exit_code=state["ExitCode"],
            is_out_of_memory=state["OOMKilled"],
            memory_mib=found["HostConfig"]["Memory"] >> 20,
        )

    def containers(self, labels: list[str]) -> list[ContainerState]:
        """All that carry the labels (``name`` or ``name=value``), whatever their state; without what only ``container`` tells."""
        with _told("The containers could not be listed."):
            found = self._api.containers(all=True, filters={"label": labels})
        return [
            ContainerState(item["Names"][0].lstrip("/"), item["Labels"], item["State"])
            for item in found
            if item["Names"]  # one that is being removed has none
        ]

    def output(self, name: str, *, stream: str = "stdout", follow: bool = False) -> Stream:
        """What a container has written, block by block; with ``follow`` until it ends."""
        with _told(f"The output of {name} could not be read."):
            blocks = self._api.logs(
                name,
                stdout=stream == "stdout",
                stderr=stream == "stderr",
                stream=True,
                follow=follow,
            )
        return Stream(blocks, f"The output of {name} could not be read on.")

    def events(self, labels: list[str], names: list[str]) -> Stream:
        """Events of these kinds of the containers that carry the labels, as the engine's own JSON, from a moment ago on.

        The engine answers before it listens to itself, so what falls in between is asked for with ``since``.
        """
        with _told("The engine's events cannot be had."):
            now = _whole_seconds(self._api.info()["SystemTime"])
            filters = {"type": "container", "event": names, "label": labels}
            events = self._api.events(since=now - 1, filters=filters, decode=True)
        return Stream(events, "The engine's events cannot be had any more.")

    # --- network ---------------------------------------------------------------------------------------

    def network(self, name: str, labels: Mapping[str, str], subnet: str = "") -> NetworkState:
        """The bridge network of this name, made where it is missing, with ``subnet`` where that is known.

        Containers in it do not reach each other.
        """
        with _told(f"The network {name} could not be made."):
            if not self._api.networks(names=[f"^{name}$"]):
                self._api.create_network(
                    name,
                    driver="bridge",
                    ipam=_ipam(subnet) if subnet else None,
                    labels=dict(labels),
                    check_duplicate=True,
                    options={"com.docker.network.bridge.enable_icc": "false"},
                )
            found = self._api.inspect_network(name)
        config: dict[str, str] = next(iter(found["IPAM"]["Config"] or []), {})
        return NetworkState(name, config.get("Subnet", ""), config.get("Gateway", ""))

    def remove_network(self, name: str) -> None:
        """Removes a network that no container is in; one that is gone is no error."""
        with suppress(NotInEngine), _told(f"The network {name} could not be removed."):
            self._api.remove_network(name)

    # --- images ----------------------------------------------------------------------------------------

    def image(self, name: str) -> ImageState:
        """An image by its id or ``repository@sha256:…``. Raises NotInEngine."""
        with _told(f"The image {name} could not be looked at."):
            found = self._api.inspect_image(name)
        named_at = (found.get("Metadata") or {}).get("LastTagTime") or ""
        return ImageState(
            image_id=found["Id"],
            labels=(found.get("Config") or {}).get("Labels") or {},
            size_bytes=found["Size"],
            tags=tuple(found["RepoTags"] or ()),
            digests=tuple(found["RepoDigests"] or ()),
            created_at=max(_unix_time(found["Created"]), _unix_time(named_at)),
        )

    def images(self, label: str, *, is_dangling: bool = False) -> list[ImageState]:
        """All that carry the label; with ``is_dangling`` those without a name that no other image is made from."""
        filters = {"label": label, **({"dangling": True} if is_dangling else {})}
        with _told("The images could not be listed."):
            found = self._api.images(filters=filters)
        return [
            ImageState(
                image_id=item["Id"],
                labels=item["Labels"] or {},
                size_bytes=item["Size"],
                tags=tuple(item["RepoTags"] or ()),
                digests=tuple(item["RepoDigests"] or ()),
                created_at=float(item["Created"]),
            )
            for item in found
        ]

    def ask_registry(self, image: str, registry: Registry | None = None) -> None:
        """Has the engine ask a registry for an image, without pulling it. Raises NotInEngine where it has none, EngineError else.

        Without ``registry`` the engine is given what ``docker login`` has kept, as far as this user has done that.
        """
        from docker import auth

        what = f"The registry of {image} does not give it."
        with _told(what):
            if registry and registry.username:
                login = {"username": registry.username, "password": registry.key}
                header = auth.encode_header(login)
            else:
                name = auth.resolve_repository_name(image)[0]
                header = auth.get_config_header(self._api, name) or auth.encode_header({})
            url = f"{self._api.base_url}/v{self._api.api_version}/distribution/{image}/json"
            try:
                answer = self._api.get(
                    url, headers={"X-Registry-Auth": header}, timeout=REGISTRY_TIMEOUT_S
                )
            except OSError as error:  # of which the transport's timeouts are
                if "timed out" not in str(error):
                    raise
                message = f"{what[:-1]}: no answer within {REGISTRY_TIMEOUT_S:.0f} s."
                raise EngineError(message) from error
            self._api._raise_for_status(answer)

    def pull(self, image: str, registry: Registry) -> None:
        """Fetches ``repository@sha256:…``. Raises EngineError with the registry's words."""
        repository, _, digest = image.partition("@")
        login = {"username": registry.username, "password": registry.key}
        what = f"The image {image} could not be pulled."
        # Without `stream`, docker-py joins the progress and hides an error that comes in the middle of it.
        with _told(what, hint=_REGISTRY_CURE):
            for event in self._api.pull(
                repository,
                tag=digest,
                stream=True,
                decode=True,
                auth_config=login if registry.username else {},
            ):
                if "error" in event:
                    raise _refused(what, str(event["error"]), _REGISTRY_CURE)

    def remove_image(self, image_id: str) -> None:
        """Removes an image with its names. Raises EngineError where a container uses it; one that is gone is no error."""
        with suppress(NotInEngine), _told(f"The image {image_id} could not be removed."):
            for tag in self.image(image_id).tags:
                self._api.remove_image(tag)
        with suppress(NotInEngine), _told(f"The image {image_id} could not be removed."):
            self._api.remove_image(image_id)


class Stream:
    """Something that the engine goes on telling. Raises EngineError where it breaks off; where that is not seen, it just ends."""

    def __init__(self, items: Any, what: str) -> None:
        self._items = items
        self._what = what

    def __iter__(self) -> Iterator[Any]:
        """Items until the end, or until ``close``."""
        with _told(self._what):
            yield from self._items

    def close(self) -> None:
        """Ends it, from another thread."""
        # AttributeError: docker-py looks for the socket of one that has ended meanwhile.
        with suppress(EngineError, AttributeError), _told(self._what):
            self._items.close()


def _facts(connection: Connection) -> EngineFacts:
    with _told("The Docker engine cannot be asked about itself."):
        version, info = connection.api.version(), connection.api.info()
    return EngineFacts(
        url=connection.place.address,
        version=version["Version"],
        platform=f"{version['Os']}/{version['Arch']}",
        cores=int(info["NCPU"]),
        memory_mib=int(info["MemTotal"]) >> 20,
        root_dir=str(info.get("DockerRootDir", "")),
        is_desktop=info.get("OperatingSystem") == "Docker Desktop",
        is_rootless="name=rootless" in (info.get("SecurityOptions") or ()),
        limits=tuple(
            name
            for name, fact in (("cpu", "CpuCfsQuota"), ("memory", "MemoryLimit"))
            if info.get(fact, True)
        ),
    )


def _ipam(subnet: str) -> dict[str, Any]:
    """The gateway is named: the engine tells none that it chose itself for a subnet that was asked for."""
    gateway = str(next(ipaddress.ip_network(subnet).hosts()))
    return {"Driver": "default", "Config": [{"Subnet": subnet, "Gateway": gateway}]}


@contextmanager
def _told(what: str, *, hint: str = "") -> Iterator[None]:
    """Turns what the docker package and its transport raise into our own errors; ``what`` and ``hint`` are sentences."""
    from docker.errors import APIError, NotFound

    from multinode_engine.connection import FOREIGN

    try:
        yield
    except NotFound as error:
        raise NotInEngine(_with_reason(what, error.explanation or "")) from error
    except APIError as error:
        reason = str(error.explanation or error)
        if error.status_code == 409 and "is not running" in reason:
            raise NotInEngine(_with_reason(what, reason)) from error
        raise _refused(what, reason, hint) from error
    except FOREIGN as error:
        message = f"{what} The Docker engine does not answer."
        raise EngineAway(message, "Is it running?") from error


def _refused(what: str, reason: str, hint: str) -> EngineError:
    if "no space left on device" in reason or "disk quota exceeded" in reason:
        return EngineError(f"{what[:-1]}: the Docker engine's disk is full.", _DISK_FULL_CURE)
    return EngineError(_with_reason(what, reason), hint)


def _with_reason(what: str, reason: str) -> str:
    reason = reason.strip().rstrip(".")
    return f"{what[:-1]}: {reason}." if reason else what


def _unix_time(at: str) -> float:
    """Of the engine's time; 0 where there is none, which it writes as the year 1."""
    return 0.0 if not at or at.startswith("0001") else float(_whole_seconds(at))


def _whole_seconds(at: str) -> int:
    """Unix time of the engine's ``2026-11-24T08:00:00.123456789Z``, or of another zone."""
    return int(datetime.fromisoformat(re.sub(r"\.\d+", "", at).replace("Z", "+00:00")).timestamp())
