"""What ``doctor`` asks the ``docker`` runner: the engine, its disk, where images come from, and whether a container reaches the
control plane. Blocks."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from multinode.errors import MultinodeError
from multinode.wire import Finding, Registry
from multinode_control_plane.runners.docker_containers import ContainerPlan, make_trial
from multinode_control_plane.runners.docker_engine import Engine, EngineError, NotInEngine
from multinode_control_plane.runners.images import ENVIRONMENT_LABEL
from multinode_control_plane.runners.registry import Repository

MIN_FREE_BYTES = 5 * 1024**3
"""An image with a few packages takes one to two GiB while it is built."""
TRIAL_TIMEOUT_S = 20


@dataclass(frozen=True)
class Tried:
    """What is tried beside the engine itself. ``base_image`` is empty where nobody said which."""

    plan: ContainerPlan
    worker_url: str
    base_image: str
    repository: Repository | None


def check_engine(engine: Engine, tried: Tried) -> list[Finding]:
    """The findings, each tried now."""
    try:
        facts = engine.facts_of()
        found = [Finding("engine", "ok", f"Docker {facts.version} ({facts.platform}), {facts.url}")]
        if not facts.is_remote and Path(facts.root_dir).is_dir():
            found.append(_disk(facts.root_dir))
        if tried.repository is not None:
            found += _registry(engine, tried.repository)
        elif tried.base_image:
            found.append(_base_image(engine, tried.base_image))
        return [*found, _reach(engine, tried.plan, tried.worker_url)]
    except EngineError as error:
        return [Finding("engine", "FAIL", error.message, error.hint)]


def _disk(root_dir: str) -> Finding:
    free_bytes = shutil.disk_usage(root_dir).free
    finding = f"{free_bytes / 1024**3:.1f} GiB free for images, in {root_dir}"
    if free_bytes < MIN_FREE_BYTES:
        cure = "Make room: `multinode server gc`, and `docker system prune`."
        return Finding("engine's disk", "FAIL", finding, cure)
    return Finding("engine's disk", "ok", finding)


def _registry(engine: Engine, repository: Repository) -> list[Finding]:
    """What it says itself; and where it lets this process in, whether it lets the engine in."""
    found = repository.checks()
    if any(finding.state == "FAIL" for finding in found):
        return found
    try:
        login = repository.login()
    except MultinodeError as error:
        return [*found, Finding("registry", "FAIL", error.message, error.hint)]
    return [*found, _asked(engine, login)]


def _asked(engine: Engine, login: Registry) -> Finding:
    """Asks for an image that is not there: who says so lets us in."""
    try:
        engine.ask_registry(f"{login.repository}:doctor", login)
    except NotInEngine:
        pass
    except EngineError as error:
        cure = "Correct --registry, --registry-username and MULTINODE_REGISTRY_KEY, or look at the engine's network."
        return Finding("registry", "FAIL", error.message, cure)
    return Finding("registry", "ok", f"{login.repository} answers the engine")


def _base_image(engine: Engine, name: str) -> Finding:
    """Without a registry images are built here."""
    try:
        engine.image(name)
        return Finding("engine's base image", "ok", f"{name} is there")
    except NotInEngine:
        pass
    try:
        engine.ask_registry(name)
    except EngineError as error:
        cure = f"Look at the engine's network and at the name, or load it there: `docker pull {name}`, `docker load`."
        return Finding("engine's base image", "note", f"{name} is not there: {error.message}", cure)
    return Finding("engine's base image", "ok", f"{name} can be pulled: its registry answers")


def _reach(engine: Engine, plan: ContainerPlan, worker_url: str) -> Finding:
    """Asks the control plane from a container such as workers have."""
    image = _image(engine)
    if image is None:
        finding = "not tried: no image is there yet; the first deploy makes one"
        return Finding("containers", "note", finding)
    name = f"multinode-doctor-{secrets.token_hex(4)}"
    try:
        engine.create(name, make_trial(plan, image, f"{worker_url}/healthz", TRIAL_TIMEOUT_S))
        engine.start(name)
        said = b"".join(engine.output(name, stream="stderr", follow=True)).decode(errors="replace")
        failed = engine.container(name).exit_code != 0
    finally:
        engine.remove(name)
    if not failed:
        return Finding("containers", "ok", f"reach the control plane at {worker_url}")
    last = (said.strip().splitlines() or [""])[-1]
    cure = (
        "Does a firewall keep containers from this machine? Or say how they reach it: --worker-url."
    )
    finding = f"do not reach the control plane at {worker_url}: {last:.200}"
    return Finding("containers", "FAIL", finding, cure)


def _image(engine: Engine) -> str | None:
    """An image with a Python: the newest one of an environment."""
    found = sorted(engine.images(ENVIRONMENT_LABEL), key=lambda item: item.created_at)
    return found[-1].image_id if found else None
