from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.installation import Installation


def make_installation(
    folder: Path, data_dir: Path | None = None, database: str | None = None
) -> Iterator[Installation]:
    """One with the functions of ``project/`` deployed, whose server is dead when it is handed out."""
    yield from deployed(Installation(folder, data_dir, database))


def deployed(made: Installation) -> Iterator[Installation]:
    """The same of one that is made already."""
    try:
        made.start()
        made.deploy()
        made.kill()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def _module_installation(tmp_path_factory, new_database) -> Iterator[Installation]:
    yield from make_installation(tmp_path_factory.mktemp("module"), database=new_database())


@pytest.fixture
def installation(tmp_path, monkeypatch, new_database) -> Iterator[Installation]:
    """An installation of the test's own."""
    for made in make_installation(tmp_path / "own", database=new_database()):
        use(made, monkeypatch)
        yield made


@pytest.fixture
def shared(_module_installation, monkeypatch) -> Iterator[Installation]:
    """The installation of this module's tests; each leaves nothing in flight. Its server is dead."""
    use(_module_installation, monkeypatch)
    yield _module_installation
    _module_installation.end()


def use(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the SDK talk to it."""
    for name, value in installation.connection().items():
        monkeypatch.setenv(name, value)
