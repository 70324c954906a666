"""Installations whose workers are containers: of an engine of their own, or tasks of the tests' stand-in for AWS."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import docker.errors
from tests.acceptance.docker_product import deploy_by_hand
from tests.aws.stand_in import StandIn
from tests.aws.task_life import LABEL as STAND_IN_LABEL
from tests.faults.installation import PROJECT, Installation
from tests.hand_made_image import needs_engine
from tests.own_engine import OwnEngine, own_engine
from tests.shared_folder import SharingEngine

REPOSITORY = "functions"


class ContainerInstallation(Installation):
    """Its images are made by hand; all containers see the folder of effects."""

    size = (0.25, "128 MiB")
    way_host = "0.0.0.0"
    engine: Any
    """docker-py's client of the engine in which they run."""
    label: str
    """That of their containers."""
    gateway: str
    """This machine's address in them."""

    def _share_effects(self) -> None:
        self.effects_folder.chmod(0o777)  # functions run as another user

    def worker_url(self, port: int) -> str:
        return f"http://{self.gateway}:{port}"

    def deploy(self) -> None:
        main = (self.folder / "tasks/main.py").read_text()
        with closing(self.client()) as client:
            deploy_by_hand(client, {**os.environ, **self.variables()}, main, self.dotenv, PROJECT)

    def containers(self, *, all: bool = True) -> list[Any]:
        """Those of its workers."""
        filters = {"label": self.label}
        return self.engine.containers.list(all=all, filters=filters, ignore_removed=True)

    def kill_container(self, rng: random.Random) -> None:
        """Kills all of a worker, if there is one."""
        if found := self.containers(all=False):
            with suppress(docker.errors.APIError):  # it has ended meanwhile
                rng.choice(found).kill()

    def left(self) -> list[str]:
        return [f"container {each.name}" for each in self.containers()]


class DockerInstallation(ContainerInstallation):
    """With an engine that may be restarted. Make it by ``on_its_own``."""

    runner = "docker"
    own_engine: OwnEngine
    sharing: SharingEngine

    @classmethod
    @contextmanager
    def on_its_own(
        cls, folder: Path, data_dir: Path, url: str | None
    ) -> Iterator[DockerInstallation]:
        with own_engine() as engine:
            made = cls(folder, data_dir, url)
            made._share_effects()
            at = engine.folder / "shared"
            with closing(SharingEngine(at, made.effects_folder, engine.url)) as sharing:
                made.own_engine, made.sharing, made.engine = engine, sharing, engine.client
                made.label = "multinode.worker"
                made.gateway = engine.gateway
                yield made

    def variables(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.sharing.url}

    def restart_engine(self, how: int) -> None:
        """Ends it by this signal, which ends what runs in it sooner or later, and starts it again."""
        self.own_engine.stop(how)
        self.own_engine.start()


class EcsInstallation(ContainerInstallation):
    """On a stand-in of its own. Make it by ``on_its_own``."""

    runner = "ecs"
    aws: StandIn
    _made: dict[str, str]

    @classmethod
    @contextmanager
    def on_its_own(cls, folder: Path, data_dir: Path, url: str | None) -> Iterator[EcsInstallation]:
        needs_engine()
        at = folder.parent / "aws"
        at.mkdir()
        with StandIn(at, keeps_tags=True) as aws, closing(docker.from_env()) as engine:
            made = cls(folder, data_dir, url)
            made._share_effects()
            aws.client("ecr").create_repository(
                repositoryName=REPOSITORY, imageTagMutability="IMMUTABLE"
            )
            aws.set(shared_folder=str(made.effects_folder))
            made.aws, made._made, made.engine = aws, aws.make_cluster(), engine
            made.label = f"{STAND_IN_LABEL}={aws.mark}"
            made.gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
            yield made

    def variables(self) -> dict[str, str]:
        return {
            **self.aws.environ,
            "MULTINODE_REGISTRY": f"ecr:{REPOSITORY}",
            **{f"MULTINODE_ECS_{name.upper()}": value for name, value in self._made.items()},
        }

    def left(self) -> list[str]:
        tasks = [each for each in self.aws.tasks() if each["status"] != "STOPPED"]
        return [*super().left(), *(f"task {each['arn']}" for each in tasks)]
