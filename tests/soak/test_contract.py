"""The execution contract, for as long as is asked: every fault of a cell again and again while clients call functions, then none but
those of workers, while the memory of the one control plane that is left is watched.

``SOAK_MINUTES`` (10) is how long each cell takes, ``SOAK_CELLS`` which ones (``process-sqlite,process-postgresql,…``; all six without it).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.faults.cells import stage_of
from tests.faults.clients import Caller, history
from tests.faults.history import Call, problems
from tests.faults.load import LONGEST_PAUSE_S, under_load, wind_down
from tests.faults.stage import Stage, faults_of

ALL_CELLS = [
    f"{runner}-{database}"
    for runner in ("process", "docker", "ecs")
    for database in ("sqlite", "postgresql")
]
CELLS = os.environ.get("SOAK_CELLS", ",".join(ALL_CELLS)).split(",")
SECONDS = 60.0 * float(os.environ.get("SOAK_MINUTES", "10"))
SAMPLES = 10
ENDS_CONTROL_PLANE = ("control plane killed", "leader stopped")
"""In the second half it lives on, or its memory could not be watched."""
AWAY_S = 600.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]


@pytest.mark.parametrize("cell", CELLS)
def test_no_promise_is_broken_and_no_memory_grows(cell, tmp_path, monkeypatch, record_summary):
    monkeypatch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
    monkeypatch.setattr("tests.faults.load.ALL_S", 10 * SECONDS)
    runner, _, database = cell.partition("-")
    with stage_of(runner, database, tmp_path, monkeypatch) as stage:
        with under_load(stage.installation, cell) as loads:
            stage.loads = loads
            faults = faults_of(runner, database)
            _make_until(time.monotonic() + SECONDS / 2, stage, faults)
            gentle = [name for name in faults if name not in ENDS_CONTROL_PLANE]
            samples = [_memory_mib(stage.installation.pid)]
            for _ in range(SAMPLES):
                _make_until(time.monotonic() + SECONDS / 2 / SAMPLES, stage, gentle)
                samples.append(_memory_mib(stage.installation.pid))
            print(f"{cell}: {loads.ended} ended, {dict(stage.made)}, {samples}", flush=True)
        memory = ", ".join(f"{each:.0f}" for each in samples)
        record_summary(
            f"{cell}: {loads.ended} invocations, {sum(stage.made.values())} faults, no violation; "
            f"the control plane's memory on the way: {memory} MiB"
        )
    assert samples[-1] < samples[len(samples) // 2] * 1.2 + 10


def _make_until(deadline: float, stage: Stage, faults: list[str]) -> None:
    """One after another, each as often as the others."""
    while time.monotonic() < deadline:
        order = list(faults)
        stage.loads.rng.shuffle(order)
        for fault in order:
            stage.loads.let_live()
            stage.make(fault)
            if time.monotonic() >= deadline:
                return


def _memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


def test_a_control_plane_that_is_away_for_ten_minutes_loses_nothing(
    tmp_path, monkeypatch, record_summary
):
    """With the leases that a user has. One function ends meanwhile, one goes on."""
    with stage_of("process", "sqlite", tmp_path, monkeypatch) as stage:
        installation = stage.installation
        installation.settings = {
            "MULTINODE_WORKER_URL": installation.settings["MULTINODE_WORKER_URL"]
        }
        installation.restart()
        caller = Caller(installation)
        over = caller.start("counts", Call("over", "SUCCEEDED", "end"), "go-over")
        on = caller.start("deaf", Call("on", "SUCCEEDED", "on"), "go-on", False)
        installation.wait_for("over", "at-20")
        installation.wait_for("on", "start")
        installation.kill()
        installation.give("go-over")
        time.sleep(AWAY_S)
        installation.start()
        caller.wait("counts", over)
        caller.follow("counts", over)
        installation.give("go-on")
        caller.wait("deaf", on)
        wind_down(installation)
        assert problems(history(installation, [caller], [over, on], ended_workers=0)) == []
    record_summary(f"the control plane was away for {AWAY_S:.0f} s, and nothing was lost")
