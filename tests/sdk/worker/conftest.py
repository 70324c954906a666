"""Workers for the tests of this folder."""

import pytest
from tests.fake_control_plane import FakeControlPlane
from tests.sdk.worker.bench import Bench, StarterProcess


@pytest.fixture(scope="session")
def starter():
    process = StarterProcess()
    yield process
    process.close()


@pytest.fixture
def plane():
    with FakeControlPlane() as control_plane:
        yield control_plane


@pytest.fixture
def bench(tmp_path, starter, plane):
    made = Bench(tmp_path, starter, plane)
    yield made
    made.clean_up()
