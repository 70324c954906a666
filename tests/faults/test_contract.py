"""The execution contract under faults: clients call functions all the time, every fault of the table is made, and at the end everything
that was promised is found to be so. `make soak` does the same for longer, in all cells."""

from __future__ import annotations

import pytest
from tests.faults.cells import stage_of
from tests.faults.load import LONGEST_PAUSE_S, under_load
from tests.faults.stage import faults_of

CELLS = [("process", "sqlite"), ("process", "postgresql"), ("docker", "sqlite")]
CALLERS = 6
ONLY_IN_SOAK = ("leader stopped",)
"""What docs/reliability.md names as open."""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("runner", "database"), CELLS, ids=map("-".join, CELLS))
def test_every_fault_leaves_every_promise_kept(
    runner, database, tmp_path, monkeypatch, record_summary
):
    monkeypatch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
    with stage_of(runner, database, tmp_path, monkeypatch) as stage:
        with under_load(stage.installation, runner, CALLERS) as loads:
            stage.loads = loads
            faults = [each for each in faults_of(runner, database) if each not in ONLY_IN_SOAK]
            loads.rng.shuffle(faults)
            for fault in faults:
                loads.let_live()
                stage.make(fault)
        assert set(stage.made) == set(faults)
        record_summary(
            f"{runner} on {database}: {sum(stage.made.values())} faults, and no promise broken, "
            f"while {loads.ended} invocations ended"
        )
