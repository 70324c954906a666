"""kill -9 of the control plane during `server rotate-key`: nothing is lost, and it can be run again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.faults.fault import Fault
from tests.faults.installation import Installation

from multinode_control_plane.databases import open_database
from multinode_control_plane.model import sealing, versions
from multinode_control_plane.secret_keys import FileSource, key_id
from multinode_control_plane.service import sealing as sealing_steps
from multinode_control_plane.service.dotenv import Sealer

pytestmark = pytest.mark.timeout(300)
VALUES = 1000
COMMITS = VALUES // sealing_steps.BATCH
"""Of a rotation that encrypts them anew."""
STEPS = (
    "next key is in the ring",
    "next key is named",
    "values are encrypted anew",
    "old keys are out of the ring",
)
NEXT_DEPLOYS = [("next key is in the ring", "before"), ("old keys are out of the ring", "before")]
"""After whose end something is deployed, too: all of them end alike."""


@dataclass(frozen=True)
class Sealed:
    """A ring, and what a database has encrypted with it."""

    file: Path
    engine: sa.Engine

    @property
    def ring(self) -> tuple[bytes, ...]:
        return FileSource(self.file).read()

    def ids(self) -> list[str]:
        """Of the keys in the ring, newest first."""
        return [key_id(key) for key in self.ring]

    def rows(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(versions).order_by(versions.c.number)))

    def current(self) -> str:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sealing.c.key_id)).scalar_one()

    def done(self, old: str) -> int:
        """How many values a rotation from this key has encrypted so far."""
        query = sa.select(sa.func.count()).where(versions.c.sealed_with != old)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def fill(self) -> None:
        """Many versions more; the values of each say which it is."""
        first, sealer, current = self.rows()[0], Sealer(self.ring), self.current()
        made = [
            {
                **first._mapping,
                "version_id": f"ver-{number}", "number": number, "content_key": str(number),
                "dotenv": sealer.seal({"NUMBER": str(number)}, current), "sealed_with": current,
            }
            for number in range(100, 100 + VALUES)
        ]  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(sa.insert(versions), made)

    def check_all_open(self) -> None:
        """With what is in the ring now, by whoever starts with it."""
        sealer = Sealer(self.ring)
        opened = [sealer.open(row.dotenv) for row in self.rows()]
        numbers = [values["NUMBER"] for values in opened if "NUMBER" in values]
        assert numbers == [str(number) for number in range(100, 100 + VALUES)]


@pytest.fixture
def sealed(shared: Installation) -> Iterator[Sealed]:
    """Its server is dead."""
    url = shared.database or f"sqlite:///{shared.data_dir / 'multinode.sqlite'}"
    database = open_database(url)
    made = Sealed(shared.data_dir / "secret.key", database.engine)
    if len(made.rows()) < VALUES:
        made.fill()
    yield made
    database.engine.dispose()


@contextmanager
def rotating(installation: Installation) -> Iterator[None]:
    """Runs the command beside; its server is dead before this ends."""
    with installation.popen("server", "rotate-key") as command:
        yield
        assert command.wait(60) != 0, "it tells that it has no answer"


def ends(installation: Installation, sealed: Sealed, before: str) -> None:
    """The rotation is asked for again, ends, and the key before it is needed no more. The server runs."""
    sealed.check_all_open()
    installation.start()
    installation.run("server", "rotate-key")
    (now,) = sealed.ids()
    assert now != before
    assert {row.sealed_with for row in sealed.rows()} == {sealed.current()} == {now}
    sealed.check_all_open()


def goes_on(installation: Installation, sealed: Sealed) -> None:
    """A deploy and what it has deployed use the only key."""
    dotenv = installation.folder / "tasks/.env"
    dotenv.write_text(f"{dotenv.read_text()}DEPLOYED_AT={time.time_ns()}\n")
    installation.run("deploy")
    (now,) = sealed.ids()
    assert sealed.rows()[-1].sealed_with == now
    assert installation.function("returns").call_remote(now) == now


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_commit_it_is_run_again(
    shared: Installation, sealed: Sealed, step: str, when: Any
) -> None:
    (before,) = sealed.ids()
    shared.start(Fault(step, when))
    with rotating(shared):
        shared.wait_killed()
    ends(shared, sealed, before)
    if (step, when) in NEXT_DEPLOYS:
        goes_on(shared, sealed)
    shared.kill()


@pytest.mark.slow
@pytest.mark.parametrize("commit", [2, COMMITS // 2, COMMITS - 1])
def test_killed_when_some_values_have_the_new_key_it_is_run_again(
    shared: Installation, sealed: Sealed, commit: int
) -> None:
    (before,) = sealed.ids()
    shared.start(Fault("values are encrypted anew", "after", commit))
    with rotating(shared):
        shared.wait_killed()
    assert 0 < sealed.done(before) < VALUES
    assert len(sealed.ids()) == 2
    ends(shared, sealed, before)
    shared.kill()


@pytest.mark.slow
def test_killed_over_and_over_it_still_ends(shared: Installation, sealed: Sealed) -> None:
    """One command after another, each killed a little later, and all on the key that the first has made."""
    (before,) = sealed.ids()
    found = set()
    for _ in range(3):
        shared.start(Fault("values are encrypted anew", "after", 2))
        with rotating(shared):
            shared.wait_killed()
        found.add(sealed.ids()[0])
        sealed.check_all_open()
    assert len(found) == 1
    ends(shared, sealed, before)
    goes_on(shared, sealed)
    shared.kill()
