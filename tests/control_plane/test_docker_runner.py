"""What the runner says of workers while its engine is away; what it does with one that is there is in `tests/contract`."""

import asyncio
from dataclasses import dataclass

import pytest
from tests.control_plane.fake_engine import FakeEngine

from multinode.errors import InputError
from multinode.wire import EnvironmentInfo
from multinode_control_plane.runners import WorkerLaunch
from multinode_control_plane.runners.docker import DockerRunner, _Worker
from multinode_control_plane.runners.docker_containers import container_name
from multinode_control_plane.runners.docker_engine import ContainerState, EngineAway, NotInEngine

AWAY = EngineAway("It could not be looked at. The Docker engine does not answer.")


class OneContainerEngine(FakeEngine):
    """Answers with this, whatever container is asked for."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def container(self, name):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def containers(self, labels):
        raise AWAY


@pytest.mark.parametrize(
    ("answer", "alive"),
    [
        (AWAY, True),
        (NotInEngine("no such container"), False),
        (ContainerState("c", {}, "running"), True),
        (ContainerState("c", {}, "exited"), False),
    ],
)
def test_a_worker_is_taken_for_dead_only_where_the_engine_says_so(tmp_path, answer, alive):
    runner = DockerRunner(tmp_path, OneContainerEngine(answer))
    assert asyncio.run(runner.alive("wrk-1")) == alive


def test_nothing_is_adopted_and_nothing_given_up_while_the_engine_is_away(tmp_path):
    runner = DockerRunner(tmp_path, OneContainerEngine(AWAY))
    with pytest.raises(InputError, match="does not answer"):
        asyncio.run(runner.adopt(["wrk-1"]))


@dataclass
class LeavingEngine(FakeEngine):
    """Goes away when it is to start a container; when it is back, the container has this status (None: there is none)."""

    status: str | None
    looks: int = 0

    def create(self, name, config):
        pass

    def put(self, name, folder, archive):
        pass

    def start(self, name):
        raise AWAY

    def container(self, name):
        self.looks += 1
        if self.looks == 1:
            raise AWAY
        if self.status is None:
            raise NotInEngine("no such container")
        return ContainerState(name, {}, self.status)

    def output(self, name, *, stream="stdout", follow=False):
        raise NotInEngine("no such container")


LAUNCH = WorkerLaunch("wrk-1", "code", "e", "b", "exe-1", 1.0, 64)


async def make(runner, tmp_path):
    await runner._make(_Worker("wrk-1", 1.0, tmp_path / "log"), LAUNCH, "sha256:x", None)


@pytest.mark.parametrize("status", ["running", "exited"])
def test_a_container_that_was_started_while_the_engine_went_away_is_a_worker(tmp_path, status):
    asyncio.run(make(DockerRunner(tmp_path, LeavingEngine(status)), tmp_path))


@pytest.mark.parametrize("status", ["created", None])
def test_one_that_was_not_is_none(tmp_path, status):
    with pytest.raises(EngineAway):
        asyncio.run(make(DockerRunner(tmp_path, LeavingEngine(status)), tmp_path))


class FaultyEngine(FakeEngine):
    """Has a fault of its own in `create`; what was removed is noted."""

    removed = ()

    def create(self, name, config):
        raise ZeroDivisionError

    def remove(self, name):
        self.removed = (*self.removed, name)

    def container(self, name):
        raise NotInEngine("no such container")


def test_a_worker_that_an_unforeseen_fault_keeps_from_being_made_is_gone(tmp_path, monkeypatch):
    async def main():
        engine = FaultyEngine()
        runner = DockerRunner(tmp_path, engine)
        monkeypatch.setattr(
            runner.images, "info", lambda digest: EnvironmentInfo("e", "3.8", "3.8", [], [], "")
        )
        monkeypatch.setattr(runner, "_packed", {"b": None})
        with pytest.raises(ZeroDivisionError):
            await runner.start(LAUNCH)
        assert not await runner.alive("wrk-1")
        assert engine.removed == (container_name("wrk-1"),)

    asyncio.run(main())
