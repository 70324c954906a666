"""As `test_kills`, on PostgreSQL, which is restarted and killed meanwhile too.

Whoever starts after a kill waits until the leader's beat has stood still for long enough, so that there are fewer kills in the same time:
of a control plane that waits to lead, of one that has just begun to, and of one that has led for a while.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from tests.faults.conftest import make_installation, use
from tests.faults.installation import Installation
from tests.faults.test_kills import LONGEST_PAUSE_S, under_load
from tests.postgres import PostgresServer

from multinode_control_plane.leadership import PATIENCE_S

KILLS = 6


@pytest.fixture
def on_postgresql(tmp_path, monkeypatch, own_postgres) -> Iterator[Installation]:
    database = own_postgres.new_database(empty=True)
    for made in make_installation(tmp_path / "own", database=database):
        use(made, monkeypatch)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kills_of_the_control_plane_and_of_postgresql_lose_nothing(
    on_postgresql: Installation, own_postgres: PostgresServer, monkeypatch
):
    monkeypatch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
    pause = threading.Event().wait
    with under_load(on_postgresql, "postgresql", least=3 * KILLS) as rng:
        for number in range(KILLS):
            on_postgresql.kill()
            on_postgresql.start()
            # The first is killed before it leads, whatever was drawn; the rest at any moment.
            pause(rng.random() if number == 0 else PATIENCE_S - 1 + 3 * rng.random())
            if number % 2:
                own_postgres.restart(rng.choice([signal.SIGINT, signal.SIGQUIT]))
                pause(2 * rng.random())
