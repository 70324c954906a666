"""What every test can ask for: the snapshot of messages, rewritten with ``--update-snapshots``; a line at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.order import ordered
from tests.snapshots.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.postgres import PostgresServer

TESTS = Path(__file__).parent
RUNNER = "process"
"""Of every server that names none: ``auto`` would take Docker where an engine answers."""
os.environ["MULTINODE_RUNNER"] = RUNNER  # for fixtures that start one before any test


def pytest_addoption(parser):
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="write tests/snapshots/messages.txt instead of comparing with it (with -n 0)",
    )
    parser.addoption(
        "--database",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="where the control planes of tests/acceptance and tests/faults keep their state",
    )


def pytest_configure(config):
    """One process writes the snapshots, or each would write what it has run alone."""
    if config.getoption("--update-snapshots") and config.getoption("numprocesses", default=None):
        message = "--update-snapshots goes with -n 0"
        raise pytest.UsageError(message)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """See ``order``; one after another they run as they stand."""
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes > 1:
        named = [(item.path.relative_to(TESTS).as_posix(), item) for item in items]
        items[:] = ordered(named, processes)


@pytest.fixture(scope="session")
def new_database(pytestconfig, request):
    """Makes the URL of a new database for a control plane; None: the SQLite file of its data folder."""

    def made() -> str | None:
        if pytestconfig.getoption("--database") == "sqlite":
            return None
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.new_database(empty=True)

    return made


@pytest.fixture(scope="session")
def sqlite_store(pytestconfig) -> None:
    """For tests that are about the file, or of what a file alone can do."""
    if pytestconfig.getoption("--database") != "sqlite":
        pytest.skip("this is about SQLite's own file")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that tests share, each with a database of its own; nobody stops it."""
    from tests.postgres import running  # not on Python 3.8, where only the SDK's tests run

    with running() as made:
        yield made


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of a test's own, to be stopped and killed."""
    from tests.postgres import running  # not on Python 3.8, where only the SDK's tests run

    with running() as made:
        yield made


@pytest.fixture
def record_summary(record_property):
    """Takes a line for the end of the run's output."""
    return lambda line: record_property("summary", line)


def pytest_terminal_summary(terminalreporter):
    """Writes those lines."""
    for report in terminalreporter.stats.get("passed", []):
        for name, line in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def messages(pytestconfig):
    """Compares what a command says with the reviewed snapshot; see ``Messages.check``."""
    book = Messages(
        Path(__file__).parent / "snapshots" / "messages.txt",
        is_updating=pytestconfig.getoption("--update-snapshots"),
    )
    yield book
    book.save()


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch, tmp_path_factory):
    """No test sees the control plane or the settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("MULTINODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MULTINODE_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("MULTINODE_RUNNER", RUNNER)
