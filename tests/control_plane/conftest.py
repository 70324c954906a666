from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control_plane import bench as benches
from tests.control_plane.bench import Bench, make_bench


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the test's stores stand on: the test runs once on each."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        urls: dict[Path, str] = {}

        def url_for(home: Path) -> str:
            if home not in urls:
                urls[home] = server.new_database()
            return urls[home]

        monkeypatch.setattr(benches, "database_for", url_for)
    return str(request.param)


@pytest.fixture
def bench(tmp_path: Path, database: str) -> Iterator[Bench]:
    """A store on each database."""
    made = make_bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def sqlite_bench(tmp_path: Path) -> Iterator[Bench]:
    """A store on SQLite."""
    made = make_bench(tmp_path)
    yield made
    made.close()
