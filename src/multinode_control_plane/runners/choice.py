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
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.runners.ecs import EcsRunner
from multinode_control_plane.runners.process import ProcessRunner
from multinode_control_plane.runners.registry import FixedRepository, Repository
from multinode_control_plane.settings import (
    ECR,
    Settings,
    check_isolation,
    room,
    whole_account,
    whole_machine,
)

AUTO_TIMEOUT_S = 2.0
"""How long ``auto`` waits for an engine to answer."""


@dataclass(frozen=True)
class Choice:
    """The runner, the settings with its room, and why it is this one where nobody named it."""

    runner: Runner
    settings: Settings
    reason: str = ""


async def choose(settings: Settings, environ: Mapping[str, str], kept: str = "") -> Choice:
    """The runner that the settings ask for. Raises InputError where it cannot serve here.

    ``kept`` is the runner of workers that may live. ``auto`` stays with it: another would take them for gone.
    """
    is_auto = settings.runner == "auto"
    name = (kept or "auto") if is_auto else settings.runner
    if name == "process":
        return _process(settings, "its workers live" if is_auto else "")
    if name == "ecs":
        return _ecs(settings)
    timeout = {"timeout_s": AUTO_TIMEOUT_S} if name == "auto" else {}
    try:
        engine = await asyncio.to_thread(Engine.connect, environ, **timeout)
    except EngineAway as error:
        if name == "auto":
            return _process(settings, error.message.rstrip("."))
        raise _needed(error, is_kept=is_auto) from error
    if name == "auto" and engine.facts.is_apart and settings.worker_url is None:
        engine.close()
        where = f"containers of the Docker engine at {engine.facts.url} may not reach this machine"
        return _process(settings, f"{where}, and no --worker-url says how they can")
    return _docker(settings, engine, "a Docker engine answers" if is_auto else "")


def _needed(error: EngineAway, *, is_kept: bool) -> InputError:
    if not is_kept:
        return InputError(error.message, f"{error.hint} Or use --runner process.")
    message = f"{error.message} Functions of this control plane may be running in its containers."
    return InputError(message, f"{error.hint} Or give them up: --runner process.")


def _process(settings: Settings, reason: str = "") -> Choice:
    chosen = settings.with_room_of("process", whole_machine())
    check_isolation(chosen)
    return Choice(ProcessRunner(settings.data_dir), chosen, reason)


def _docker(settings: Settings, engine: Engine, reason: str) -> Choice:
    whole = room(engine.facts.cores, engine.facts.memory_mib)
    runner = DockerRunner(
        settings.data_dir,
        engine,
        repository=repository_of(settings),
        log_limit_bytes=settings.log_limit_bytes,
    )
    return Choice(runner, settings.with_room_of("docker", whole), reason)


def _ecs(settings: Settings) -> Choice:
    repository = repository_of(settings)
    if settings.ecs is None or not isinstance(repository, EcrRepository):
        message = "Functions of this control plane may be running as tasks of ECS."
        raise InputError(message, "Start it with --runner ecs and its settings, or give them up: --runner process.")  # fmt: skip
    runner = EcsRunner(settings.data_dir, settings.ecs, repository)
    return Choice(runner, settings.with_room_of("ecs", whole_account()))


def repository_of(settings: Settings) -> Repository | None:
    """Where the settings say that images are pushed; None: nowhere."""
    if not settings.registry:
        return None
    kind, colon, name = settings.registry.partition(":")
    if colon and kind == ECR:
        return EcrRepository(name, makes_it=settings.registry_create)
    user, key = settings.registry_username or "", settings.registry_key or ""
    return FixedRepository(Registry(settings.registry, user, key))
