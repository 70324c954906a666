"""Which runner serves: the one that was asked for, or with ``auto`` Docker where an engine answers, else processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from multinode.errors import InputError
from multinode.wire import Registry
from multinode_control_plane.runners import Runner
from multinode_control_plane.runners.docker import DockerRunner
from multinode_control_plane.runners.docker_engine import Engine, EngineAway
from multinode_control_plane.runners.process import ProcessRunner
from multinode_control_plane.settings import Settings, check_isolation, room, whole_machine

AUTO_TIMEOUT_S = 2.0
"""How long ``auto`` waits for an engine to answer."""


@dataclass(frozen=True)
class Choice:
    """The runner, the settings with its room, and why it is this one where nobody named it."""

    runner: Runner
    settings: Settings
    reason: str = ""


async def choose(settings: Settings, environ: Mapping[str, str]) -> Choice:
    """The runner that the settings ask for. Raises InputError where it cannot serve here."""
    if settings.runner == "process":
        return _process(settings)
    is_asked_for = settings.runner == "docker"
    timeout = {} if is_asked_for else {"timeout_s": AUTO_TIMEOUT_S}
    try:
        engine = await asyncio.to_thread(Engine.connect, environ, **timeout)
    except EngineAway as error:
        if is_asked_for:
            raise InputError(error.message, f"{error.hint} Or use --runner process.") from error
        return _process(settings, error.message.rstrip("."))
    if not is_asked_for and engine.facts.is_apart and settings.worker_url is None:
        engine.close()
        where = f"containers of the Docker engine at {engine.facts.url} may not reach this machine"
        return _process(settings, f"{where}, and no --worker-url says how they can")
    return _docker(settings, engine, "" if is_asked_for else "a Docker engine answers")


def _process(settings: Settings, reason: str = "") -> Choice:
    chosen = settings.with_room_of("process", whole_machine())
    check_isolation(chosen)
    return Choice(ProcessRunner(settings.data_dir), chosen, reason)


def _docker(settings: Settings, engine: Engine, reason: str) -> Choice:
    whole = room(engine.facts.cores, engine.facts.memory_mib)
    registry = None
    if settings.registry:
        user, key = settings.registry_username or "", settings.registry_key or ""
        registry = Registry(settings.registry, user, key)
    runner = DockerRunner(
        settings.data_dir,
        engine,
        registry=registry,
        log_limit_bytes=settings.log_limit_bytes,
    )
    return Choice(runner, settings.with_room_of("docker", whole), reason)
