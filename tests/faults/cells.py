"""The cells of the table: a stage for each runner on each database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from tests.faults.clock import Clock
from tests.faults.conftest import deployed, use
from tests.faults.containers import DockerInstallation, EcsInstallation
from tests.faults.installation import Installation
from tests.faults.small_disk import small_disk
from tests.faults.stage import LEASES, ShortWatches, Stage
from tests.faults.way import Way
from tests.postgres import Relay, running

DISK_SIZE = "512m"


@contextmanager
def stage_of(
    runner: str, database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """One whose functions are deployed and whose server runs; the SDK talks to it. Nothing is left of it."""
    with ExitStack() as stack:
        postgres = stack.enter_context(running()) if database == "postgresql" else None
        disk = None
        if database == "sqlite":
            (folder / "disk").mkdir()
            disk = stack.enter_context(small_disk(folder / "disk", DISK_SIZE))
        data_dir = disk / "data" if disk else folder / "data"
        url = postgres.new_database(empty=True) if postgres else None
        made = stack.enter_context(_installation(runner, folder, data_dir, url))
        way = stack.enter_context(closing(Way(made.port, host=made.way_host)))
        clock = Clock(folder / "clock")
        made.hooks = (clock, ShortWatches())
        made.settings = {**LEASES, "MULTINODE_WORKER_URL": made.worker_url(way.port)}
        stage = Stage(made, way, clock, postgres=postgres, disk=disk)
        if postgres is not None:
            stage.front = stack.enter_context(closing(Relay(made.port)))
            made.front = stage.front.port
        stack.enter_context(contextmanager(deployed)(made))
        use(made, monkeypatch)
        made.start()
        made.until_led()
        yield stage


@contextmanager
def _installation(
    runner: str, folder: Path, data_dir: Path, url: str | None
) -> Iterator[Installation]:
    own = folder / "own"
    if runner == "process":
        yield Installation(own, data_dir, url)
        return
    made = DockerInstallation if runner == "docker" else EcsInstallation
    with made.on_its_own(own, data_dir, url) as installation:
        yield installation
