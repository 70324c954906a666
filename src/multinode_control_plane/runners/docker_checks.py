"""What ``doctor`` asks the ``docker`` runner: the engine, its disk, and whether a container reaches the control plane. Blocks."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from multinode.wire import Finding
from multinode_control_plane.runners.docker_containers import ContainerPlan, make_trial
from multinode_control_plane.runners.docker_engine import Engine, EngineError
from multinode_control_plane.runners.docker_images import ENVIRONMENT_LABEL

MIN_FREE_BYTES = 5 * 1024**3
"""An image with a few packages takes one to two GiB while it is built."""
TRIAL_TIMEOUT_S = 20


def check_engine(engine: Engine, plan: ContainerPlan, worker_url: str) -> list[Finding]:
    """The findings, each tried now."""
    try:
        facts = engine.facts_of()
        found = [Finding("engine", "ok", f"Docker {facts.version} ({facts.platform}), {facts.url}")]
        if not facts.is_remote and Path(facts.root_dir).is_dir():
            found.append(_disk(facts.root_dir))
        return [*found, _reach(engine, plan, worker_url)]
    except EngineError as error:
        return [Finding("engine", "FAIL", error.message, error.hint)]


def _disk(root_dir: str) -> Finding:
    free_bytes = shutil.disk_usage(root_dir).free
    finding = f"{free_bytes / 1024**3:.1f} GiB free for images, in {root_dir}"
    if free_bytes < MIN_FREE_BYTES:
        cure = "Make room: `multinode server gc`, and `docker system prune`."
        return Finding("engine's disk", "FAIL", finding, cure)
    return Finding("engine's disk", "ok", finding)


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
