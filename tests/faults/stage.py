"""An installation with all that can be spoilt about it, and the faults themselves: each is made, and is over when its function returns."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from tests.faults.clock import Clock
from tests.faults.containers import ContainerInstallation, DockerInstallation, EcsInstallation
from tests.faults.installation import Installation, wait_until
from tests.faults.load import Loads
from tests.faults.small_disk import fill_disk, free_disk
from tests.faults.way import Way
from tests.postgres import PostgresServer, Relay

from multinode.worker import processes
from multinode_control_plane.api import workers
from multinode_control_plane.runners.worker_processes import is_held

SILENCE_S, UNREACHABLE_S = 1.0, 4.0
"""Short leases: the runner is asked for a worker that is silent for a second, and one that lives is given up after four more."""
LEASE_S = SILENCE_S + UNREACHABLE_S
LEASES = {"MULTINODE_SILENCE": f"{SILENCE_S:g}", "MULTINODE_UNREACHABLE": f"{UNREACHABLE_S:g}"}


class ShortWatches:
    """A hook: workers that wait for orders are answered each second, or a stopped one would seem to be heard for 25."""

    def install(self) -> None:
        workers.MAX_WAIT_S = SILENCE_S


@dataclass
class Stage:
    """``way`` is the workers' to the control plane, ``front`` that of clients where there is one; ``made`` counts the faults so far."""

    installation: Installation
    way: Way
    clock: Clock
    front: Relay | None = None
    postgres: PostgresServer | None = None
    disk: Path | None = None
    loads: Loads = field(init=False)
    made: Counter[str] = field(default_factory=Counter)

    def make(self, name: str) -> None:
        """Makes the fault of this name; all is well again then, but for what is left to the product."""
        began = datetime.now(tz=timezone.utc).time()
        FAULTS[name](self)
        self.made[name] += 1
        print(f"{began}: {name}, over at {datetime.now(tz=timezone.utc).time()}")

    def ends_worker(self) -> None:
        """Notes that one is about to be ended."""
        if self.loads.ended_workers is not None:
            self.loads.ended_workers += 1


# --- the control plane ---


def control_plane_killed(stage: Stage) -> None:
    stage.installation.kill()
    stage.installation.start()
    stage.installation.until_led()


def control_plane_stopped(stage: Stage) -> None:
    """For longer than all leases, as in a machine that is suspended."""
    stage.installation.send(signal.SIGSTOP)
    time.sleep(LEASE_S + 1)
    stage.installation.send(signal.SIGCONT)


def clock_jumps(stage: Stage) -> None:
    stage.clock.jump(stage.loads.rng.choice([7200.0, 60.0, -20.0]))
    time.sleep(0.5)


def leader_stopped(stage: Stage) -> None:
    """Another process takes over, and the stopped one comes back; at the end it leads again."""
    assert stage.front is not None
    first, second = stage.installation, stage.installation.beside()
    second.start()
    try:
        first.send(signal.SIGSTOP)
        _lead_to(stage, second)
        second.until_led()
        stage.loads.let_live()
        first.send(signal.SIGCONT)
        first.wait_deposed()
        first.start()
    finally:
        second.kill()
    _lead_to(stage, first)
    first.until_led()


def _lead_to(stage: Stage, one: Installation) -> None:
    assert stage.front is not None
    for way in (stage.front, stage.way):
        way.lead_to(one.port)
    stage.front.cut()
    stage.front.mend()
    stage.way.part()
    stage.way.meet()


# --- its store ---


def disk_full(stage: Stage) -> None:
    assert stage.disk is not None
    fill_disk(stage.disk)
    time.sleep(1.0)
    free_disk(stage.disk)


def postgres_restarted(stage: Stage) -> None:
    assert stage.postgres is not None
    stage.postgres.restart(stage.loads.rng.choice([signal.SIGINT, signal.SIGQUIT]))


# --- workers ---


def supervisor_killed(stage: Stage) -> None:
    if found := _supervisor(stage):
        stage.ends_worker()
        _kill(found[0])


def child_killed(stage: Stage) -> None:
    found = _supervisor(stage)
    children = processes.children(found[0]) if found else []
    if children:
        stage.ends_worker()
        _kill(stage.loads.rng.choice(children))


def starter_killed(stage: Stage) -> None:
    """What has forked the workers; they live on."""
    found = stage.installation.processes(b"multinode.worker.starter")
    parents = [pid for pid in found if _parent(pid) not in found]
    if parents:
        _kill(stage.loads.rng.choice(parents))


def worker_stopped(stage: Stage) -> None:
    """For a while that its lease has room for: it is only silent."""
    _stop_worker(stage, SILENCE_S + UNREACHABLE_S / 4)


def worker_stopped_too_long(stage: Stage) -> None:
    """It is given up."""
    stage.ends_worker()
    _stop_worker(stage, LEASE_S + 2 * SILENCE_S)


def _stop_worker(stage: Stage, seconds: float) -> None:
    found = _supervisor(stage)
    if found is None:
        return
    pid, file = found
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + seconds
        while is_held(file) and time.monotonic() < until:
            time.sleep(0.05)
        if is_held(file):
            os.kill(pid, signal.SIGCONT)


def _supervisor(stage: Stage) -> tuple[int, Path] | None:
    """A worker that lives: its supervisor's pid, and the file that it holds."""

    def look() -> tuple[int, Path] | None:
        folder = stage.installation.data_dir / "workers"
        files = sorted(folder.glob("*.json"))
        stage.loads.rng.shuffle(files)
        for file in files:
            with suppress(OSError, ValueError, KeyError):
                if is_held(file):
                    return json.loads(file.read_text())["pid"], file
        return None

    return wait_until(look, "a worker that lives")


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


# --- between them ---


def way_spoilt(stage: Stage) -> None:
    """Requests of workers are lost, late, repeated; answers too."""
    stage.way.spoil(0.06)
    time.sleep(2.0)
    stage.way.spoil(0)


def way_parted(stage: Stage) -> None:
    """For less than a lease."""
    stage.way.part()
    time.sleep(SILENCE_S + UNREACHABLE_S / 4)
    stage.way.meet()


# --- what the runner stands on ---


def engine_restarted(stage: Stage) -> None:
    """Stopped or killed, it ends what runs in it."""
    assert isinstance(stage.installation, DockerInstallation)
    stage.loads.ended_workers = None
    stage.installation.restart_engine(stage.loads.rng.choice([signal.SIGTERM, signal.SIGKILL]))


def container_killed(stage: Stage) -> None:
    assert isinstance(stage.installation, ContainerInstallation)
    stage.ends_worker()
    stage.installation.kill_container(stage.loads.rng)


def aws_spoilt(stage: Stage) -> None:
    """Its API throttles, loses questions and answers, and lags."""
    assert isinstance(stage.installation, EcsInstallation)
    aws = stage.installation.aws
    for operation in ("RunTask", "DescribeTasks", "StopTask", "ListTasks", "CreateLogStream"):
        aws.fault(operation, "error", code="ThrottlingException", message="Rate exceeded", times=2)
        for kind in ("lost", "unheard"):
            aws.fault(operation, kind)
        aws.fault(operation, "slow", seconds=1.0, times=2)
    time.sleep(3.0)
    aws.no_faults()


FAULTS: dict[str, Callable[[Stage], None]] = {
    "control plane killed": control_plane_killed,
    "control plane stopped": control_plane_stopped,
    "clock jumps": clock_jumps,
    "leader stopped": leader_stopped,
    "disk full": disk_full,
    "PostgreSQL restarted": postgres_restarted,
    "supervisor killed": supervisor_killed,
    "child killed": child_killed,
    "starter killed": starter_killed,
    "worker stopped": worker_stopped,
    "worker stopped too long": worker_stopped_too_long,
    "way spoilt": way_spoilt,
    "way parted": way_parted,
    "engine restarted": engine_restarted,
    "container killed": container_killed,
    "AWS spoilt": aws_spoilt,
}
EVERYWHERE = (
    "control plane killed",
    "control plane stopped",
    "clock jumps",
    "way spoilt",
    "way parted",
)
OF_RUNNER = {
    "process": (
        "supervisor killed", "child killed", "starter killed", "worker stopped", "worker stopped too long",
    ),
    "docker": ("engine restarted", "container killed"),
    "ecs": ("container killed", "AWS spoilt"),
}  # fmt: skip
OF_DATABASE = {
    "sqlite": ("disk full",),
    "postgresql": ("PostgreSQL restarted", "leader stopped"),
}


def faults_of(runner: str, database: str) -> list[str]:
    """Of one cell of the table."""
    found = [*EVERYWHERE, *OF_RUNNER[runner], *OF_DATABASE[database]]
    return [name for name in found if name != "leader stopped" or runner == "process"]
