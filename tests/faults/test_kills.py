"""kill -9 of the control plane at random moments under load loses nothing that a client was told: 200 of them in ``make soak``.

The seed is printed; ``FAULTS_SEED`` has the same kills and calls made again (what falls together is the machine's affair).
"""

from __future__ import annotations

import os
import time

import pytest
from tests.faults.installation import Installation
from tests.faults.load import LONGEST_PAUSE_S, Loads, under_load

RUNS = [("0", 20), ("1", 20), pytest.param("long", 200, marks=pytest.mark.soak)]
"""What their callers do differs; and how often they kill at least."""


def kill_again_and_again(installation: Installation, loads: Loads, kills: int) -> int:
    """Kills and restarts the control plane at least so many times; how often it was killed. It runs at the end."""
    killed = 0
    while loads.go_on(killed, kills):
        if loads.rng.random() < 0.1:  # while it comes up
            os.close(installation.begin_start())
            time.sleep(0.3 * loads.rng.random())
        else:
            installation.start()
            loads.let_live()
        installation.kill()
        killed += 1
    installation.start()
    return killed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("run", "kills"), RUNS)
def test_a_control_plane_that_is_killed_again_and_again_loses_nothing(
    installation, run, kills, monkeypatch, record_summary
):
    monkeypatch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
    installation.start()
    with under_load(installation, run) as loads:
        installation.kill()
        killed = 1 + kill_again_and_again(installation, loads, kills - 1)
    assert killed >= kills
    record_summary(f"kills of the control plane: {killed}, while {loads.ended} invocations ended")
