import threading
import time

import pytest
from tests.aws.stand_in import StandIn
from tests.contract import endings
from tests.contract.ecs_stage import make_environment
from tests.fake_control_plane import FakeControlPlane
from tests.hand_made_image import needs_engine


@pytest.fixture(params=endings.ENDINGS, ids=lambda name: name or "as it says")
def ending(request):
    """See ``endings``."""
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a test whose stage has an ending of its own."""
    stage = pyfuncitem.funcargs.get("stage")
    if stage is None or not stage.ending:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    endings.run(stage, lambda: pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="session")
def ecs_environment(tmp_path_factory):
    needs_engine()
    with StandIn(tmp_path_factory.mktemp("aws")) as aws:
        yield make_environment(aws, tmp_path_factory.mktemp("ecs"))


@pytest.fixture
def ecs_stage(tmp_path, ecs_environment, ending, monkeypatch):
    for name, value in ecs_environment.aws.environ.items():
        monkeypatch.setenv(name, value)
    ecs_environment.lend(tmp_path)
    ecs_environment.aws.set(shared_folder=str(tmp_path))
    tmp_path.chmod(0o777)
    threads = threading.active_count()
    with FakeControlPlane(ecs_environment.gateway) as plane:
        from tests.contract.test_runner import EcsStage  # which asks for this fixture

        stage = EcsStage(tmp_path, ecs_environment, plane, ending)
        yield stage
    deadline = time.monotonic() + 60
    while (left := stage.left() or stage.present()) and time.monotonic() < deadline:
        time.sleep(0.05)
    stage.tasks.close()
    assert not left, "tasks were left behind"
    assert threading.active_count() <= threads
