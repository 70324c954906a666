"""A worker's container: how it is made, how it is told apart, and how its end reads. Pure: nothing here asks the engine."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multinode.worker.cgroup import cpu_quota
from multinode.worker.launch import ARGUMENTS, Launch
from multinode_control_plane.runners import WorkerEnd, WorkerLaunch
from multinode_control_plane.runners.docker_engine import ContainerState
from multinode_control_plane.runners.images import INSTALLATION_LABEL
from multinode_control_plane.runners.worker_exits import read_exit

WORKER_LABEL = "multinode.worker"
EXECUTION_LABEL = "multinode.execution"
CPU_LABEL = "multinode.cpu"
USER_ID = 1000
HOME = "/work"
LAUNCH_NAME, CODE_NAME = ".launch", ".code"
LAUNCH_FILE = f"{HOME}/{LAUNCH_NAME}"
PIDS_LIMIT = 2048
"""Processes and threads of one container: enough for pools on every core, an end to a fork bomb."""
MAX_PACKED_BYTES = 16 * 1024 * 1024
SMALLEST_MEMORY_MIB = 6
"""Less is refused by the engine: https://docs.docker.com/engine/containers/resource_constraints/, 2026-11-24"""
STARTING_CPU = 1.0
"""What a container has at the least until its worker has its execution: at 0.1 the 34 ms of CPU of a worker's start took 500 ms."""
_LEAST_CPU = 0.01
_SHARES_OF_ONE_CPU, _LEAST_SHARES = 1024, 2
_LOG_ROOM = 3
"""An execution's output may take so much more room as the engine keeps it: JSON in JSON."""


@dataclass(frozen=True)
class ContainerPlan:
    """What all containers of a runner have in common."""

    installation: str
    network: str
    cores: int
    log_limit_bytes: int


def container_name(worker_id: str) -> str:
    """The container of a worker."""
    return f"multinode-{worker_id}"


def worker_labels(installation: str) -> list[str]:
    """The labels by which the installation's workers are found.

    Both: containers inherit their image's labels, so that one that somebody runs by hand has the first.
    """
    return [f"{INSTALLATION_LABEL}={installation}", WORKER_LABEL]


def make_config(plan: ContainerPlan, launch: WorkerLaunch, image: str) -> dict[str, Any]:
    """The container in the engine's own JSON (https://docs.docker.com/reference/api/engine/version/v1.40/).

    No secret is in it: the launch comes as a file. ``Init`` forwards signals, and reaps what the worker cannot.
    """
    return {
        "Image": image,
        "Entrypoint": ["python", *ARGUMENTS, "--launch-file", LAUNCH_FILE],
        "User": f"{USER_ID}:{USER_ID}",
        "WorkingDir": HOME,
        "Env": [f"HOME={HOME}"],
        "Volumes": {HOME: {}, "/tmp": {}},
        "Labels": {
            INSTALLATION_LABEL: plan.installation,
            WORKER_LABEL: launch.worker_id,
            EXECUTION_LABEL: launch.execution_id,
            CPU_LABEL: str(launch.cpu),
        },
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(plan, launch),
    }


def cpu_limit(cpu: float, cores: int) -> dict[str, int]:
    """``cpu`` as the engine takes it: from a hundredth to all that it has. Not as NanoCpus, which it does not let change."""
    quota, period = cpu_quota(max(min(cpu, cores), _LEAST_CPU))
    return {"CpuQuota": quota, "CpuPeriod": period}


def _host_config(plan: ContainerPlan, launch: WorkerLaunch) -> dict[str, Any]:
    memory_bytes = max(launch.memory_mib, SMALLEST_MEMORY_MIB) << 20
    return {
        **cpu_limit(max(launch.cpu, STARTING_CPU), plan.cores),
        # Who starts with more than its own takes none of it from who has asked for it.
        "CpuShares": max(int(launch.cpu * _SHARES_OF_ONE_CPU), _LEAST_SHARES),
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,  # both together: no swap
        "PidsLimit": PIDS_LIMIT,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Init": True,
        "NetworkMode": plan.network,
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(_LOG_ROOM * plan.log_limit_bytes), "max-file": "2"},
        },
    }


def make_trial(plan: ContainerPlan, image: str, url: str, timeout_s: int) -> dict[str, Any]:
    """A container that asks for a URL and ends: with 0 where it is answered."""
    code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout={timeout_s})"
    return {
        "Image": image,
        "Entrypoint": ["python", "-c", code],
        "User": f"{USER_ID}:{USER_ID}",
        "Labels": {INSTALLATION_LABEL: plan.installation},
        "HostConfig": {"NetworkMode": plan.network, "ReadonlyRootfs": True, "CapDrop": ["ALL"]},
    }


def make_launch(launch: WorkerLaunch, api_url: str, *, has_code: bool) -> Launch:
    """What the worker is told. It writes its records to its stdout, and fetches its code where it is not given it."""
    return Launch(
        code_dir=f"{HOME}/{CODE_NAME}" if has_code else None,
        worker_id=launch.worker_id,
        claim_code=launch.claim_code,
        api_url=api_url,
        work_dir=f"{HOME}/{launch.worker_id}",
        interpreter_env=dict(launch.interpreter_env) or None,
    )


def pack_code(code_dir: Path) -> bytes | None:
    """The code as a tar archive for `pack`; None where it is large: then the worker fetches its bundle.

    Unpacked by the engine it costs the container nothing: there ``tarfile`` alone would take 30 ms of a tenth of a cpu.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in [code_dir, *sorted(code_dir.rglob("*"))]:
            if "__pycache__" in path.parts:
                continue
            tar.add(path, CODE_NAME / path.relative_to(code_dir), recursive=False, filter=_of_root)
            if packed.tell() > MAX_PACKED_BYTES:
                return None
    return packed.getvalue()


def pack(launch: Launch, code: bytes | None) -> bytes:
    """What is unpacked into the working folder of a container that was made: the launch, for its user alone, and the code."""
    content = launch.to_json().encode()
    packed = io.BytesIO(code or b"")
    # Appended to the code's archive, over its end: https://docs.python.org/3/library/tarfile.html, mode "a"
    with tarfile.open(fileobj=packed, mode="a" if code else "w") as tar:
        item = tarfile.TarInfo(LAUNCH_NAME)
        item.size, item.mode, item.uid, item.gid = len(content), 0o400, USER_ID, USER_ID
        tar.addfile(item, io.BytesIO(content))
    return packed.getvalue()


def _of_root(item: tarfile.TarInfo) -> tarfile.TarInfo:
    item.uid = item.gid = 0
    item.uname = item.gname = ""
    item.mode &= 0o755
    return item


def end_of(worker_id: str, state: ContainerState, stderr: str) -> WorkerEnd:
    """How a container that has ended reads as a worker's end."""
    return read_exit(
        worker_id,
        state.exit_code,
        is_out_of_memory=state.is_out_of_memory,
        memory_mib=state.memory_mib,
        said=stderr,
    )
