"""The stage of ``test_runner`` for the ``ecs`` runner: tasks of the tests' stand-in for AWS, from an image made by hand."""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from tests.aws.stand_in import StandIn
from tests.contract.docker_stage import host_pid
from tests.hand_made_image import build_image

from multinode.distribution import sdk_digest
from multinode.wire import BuildRequest, EnvironmentSpec
from multinode_control_plane.ecs_settings import EcsSettings
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.runners.ecs import EcsRunner
from multinode_control_plane.runners.ecs_tasks import WORKER_TAG

REPOSITORY = "workers"
POLL_S, STOP_TIMEOUT_S, SETTLE_S = 0.2, 2, 0.5
"""Shorter than in earnest: a test waits for each."""


@dataclass(frozen=True)
class EcsEnvironment:
    """An installation in the stand-in that all tests of a session share, with one image."""

    aws: StandIn
    settings: EcsSettings
    folder: Path
    digest: str
    gateway: str

    def lend(self, data_dir):
        """Makes another data folder one of the same installation."""
        (data_dir / "images").symlink_to(self.folder / "images")

    def make_runner(self, data_dir):
        return EcsRunner(
            data_dir,
            self.settings,
            EcrRepository(REPOSITORY),
            poll_s=POLL_S,
            stop_timeout_s=STOP_TIMEOUT_S,
            settle_s=SETTLE_S,
        )


def settings_of(made, **changes):
    """From what ``StandIn.make_cluster`` says."""
    lists = {name: (made[name],) for name in ("subnets", "security_groups")}
    return EcsSettings(**{**made, **lists, **changes})


def make_environment(aws, folder):
    """Makes cluster and repository, builds the image and pushes it."""
    os.environ.update(aws.environ)
    settings = settings_of(aws.make_cluster())
    aws.client("ecr").create_repository(repositoryName=REPOSITORY)
    engine = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
    gateway = engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]

    async def main():
        runner = EcsRunner(folder, settings, EcrRepository(REPOSITORY))
        await runner.open(lambda end: None, "")
        spec = EnvironmentSpec(python="3.8")
        request = BuildRequest(spec, sdk_digest=sdk_digest())
        order = [event async for event in runner.build(request)][-1].image_order
        report = await asyncio.to_thread(build_image, order, spec)
        info = await runner.take_image(order.digest, report)
        await runner.close()
        engine.remove_image(order.tag)
        return EcsEnvironment(aws, settings, folder, info.digest, gateway)

    try:
        return asyncio.run(main())
    finally:
        engine.close()
        for name in aws.environ:
            del os.environ[name]


class Tasks:
    """What the stand-in and its engine have of workers."""

    def __init__(self, aws):
        self._aws = aws
        self._engine = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")

    def containers(self, worker_id=None):
        """Of one worker, or of all: whatever their state."""
        labels = [f"multinode.stand-in={self._aws.mark}"]
        labels += [f"{WORKER_TAG}={worker_id}"] if worker_id else []
        return self._engine.containers(all=True, filters={"label": labels})

    def present(self):
        """Ids of workers whose tasks have not stopped."""
        return {
            each["tags"][WORKER_TAG]
            for each in self._aws.tasks()
            if each["status"] != "STOPPED" and WORKER_TAG in each["tags"]
        }

    def pid(self, worker_id):
        """The first process of a worker's container, as this machine knows it; 0 where it has none."""
        for container in self.containers(worker_id):
            with suppress(docker.errors.NotFound):
                return self._engine.inspect_container(container["Id"])["State"]["Pid"]
        return 0

    def host_pid(self, worker_id, pid):
        (container,) = self.containers(worker_id)
        return host_pid(container["Id"], pid)

    def kill(self, worker_id):
        """kill -9 of its first process, if it is there."""
        pid = self.pid(worker_id)
        if pid:  # 0 would be this process's own group
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self):
        self._engine.close()
