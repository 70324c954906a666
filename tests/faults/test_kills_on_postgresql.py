"""As `test_kills`, on PostgreSQL, which is restarted and killed meanwhile too.

Whoever starts after a kill waits until the leader's beat has stood still for long enough: killed is a control plane that waits to
lead, one that has just begun to, and one that has led for a while.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from tests.faults.conftest import make_installation, use
from tests.faults.installation import Installation
from tests.faults.load import LONGEST_PAUSE_S, under_load
from tests.postgres import PostgresServer

KILLS = 12


@pytest.fixture
def on_postgresql(tmp_path, monkeypatch, own_postgres) -> Iterator[Installation]:
    database = own_postgres.new_database(empty=True)
    for made in make_installation(tmp_path / "own", database=database):
        use(made, monkeypatch)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_of_the_control_plane_and_of_postgresql_lose_nothing(
    on_postgresql: Installation, own_postgres: PostgresServer, monkeypatch, record_summary
):
    monkeypatch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
    killed = restarted = 0
    on_postgresql.start()
    with under_load(on_postgresql, "postgresql") as loads:
        while loads.go_on(killed, KILLS):
            on_postgresql.kill()
            killed += 1
            on_postgresql.start()
            if killed % 4 == 0:
                own_postgres.restart(loads.rng.choice([signal.SIGINT, signal.SIGQUIT]))
                restarted += 1
            if killed % 3 == 0:
                time.sleep(loads.rng.random())  # it may not lead yet
            else:
                loads.let_live()
    record_summary(
        f"on PostgreSQL: {killed} kills of the control plane, {restarted} of the database, "
        f"while {loads.ended} invocations ended"
    )
