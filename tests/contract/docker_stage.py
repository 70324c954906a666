"""The stage of ``test_runner`` for the ``docker`` runner: containers from an image made by hand."""

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.hand_made_image import build_image

from multinode.distribution import sdk_digest
from multinode.wire import BuildRequest, EnvironmentSpec
from multinode_control_plane.runners.docker import DockerRunner
from multinode_control_plane.runners.docker_containers import container_name, worker_labels
from multinode_control_plane.runners.docker_engine import Engine


@dataclass(frozen=True)
class DockerEnvironment:
    """An installation in the engine that all tests of a session share: its network, and one image."""

    folder: Path
    digest: str
    gateway: str
    image: str

    def lend(self, data_dir):
        """Makes another data folder one of the same installation."""
        for name in ("installation", "network.json"):
            shutil.copy(self.folder / name, data_dir)
        (data_dir / "images").symlink_to(self.folder / "images")


class SharingRunner(DockerRunner):
    """Containers see the test's folder, so that its functions can leave marks there."""

    def __init__(self, data_dir, engine, shared):
        super().__init__(data_dir, engine)
        self._shared = shared

    def _make_container(self, launch, image, code):
        super()._make_container(launch, image, code)
        found = self.engine._api.inspect_container(container_name(launch.worker_id))
        with (self._shared / "volumes").open("a") as file:
            file.writelines(f"{item['Name']}\n" for item in found["Mounts"] if "Name" in item)

    def _remove_network(self):
        """Stays: the tests' control plane listens in it, and others of the session follow."""

    def container_config(self, launch, image):
        config = super().container_config(launch, image)
        config["HostConfig"]["Binds"] = [f"{self._shared}:{self._shared}"]
        return config


def volumes_noted(folder):
    """All that the containers of runners on this folder had."""
    path = folder / "volumes"
    return set(path.read_text().split()) if path.exists() else set()


def make_environment(folder):
    """Builds the image, and makes the network."""

    async def main():
        runner = SharingRunner(folder, Engine.connect(os.environ), folder)
        gateway = (await runner.worker_address()).listen
        await runner.open(lambda end: None, "")
        spec = EnvironmentSpec(python="3.8")
        request = BuildRequest(spec, sdk_digest=sdk_digest())
        order = [event async for event in runner.build(request)][-1].image_order
        report = await asyncio.to_thread(build_image, order, spec)
        info = await runner.take_image(order.digest, report)
        await runner.close()
        return DockerEnvironment(folder, info.digest, gateway, info.image)

    return asyncio.run(main())


def remove_environment(environment):
    engine = Engine.connect(os.environ)
    installation = (environment.folder / "installation").read_text()
    engine.remove_network(f"multinode-{installation}")
    engine.remove_image(environment.image)
    engine.close()


class Containers:
    """What the engine has of an installation."""

    def __init__(self, data_dir):
        self._engine = Engine.connect(os.environ)
        self._installation = (data_dir / "installation").read_text()

    def left(self):
        """Names of its containers, whatever their state."""
        found = self._engine.containers(worker_labels(self._installation))
        return [state.name for state in found]

    def images_and_networks(self):
        """Ids of what is its own of these."""
        label = f"multinode.installation={self._installation}"
        images = {state.image_id for state in self._engine.images(label)}
        found = self._engine._api.networks(filters={"label": label})
        return images | {item["Id"] for item in found}

    def is_running(self, worker_id):
        return self._engine.container(container_name(worker_id)).is_running

    def inspect(self, worker_id):
        """What ``docker inspect`` shows."""
        return self._engine._api.inspect_container(container_name(worker_id))

    def remove(self, worker_id):
        self._engine.remove(container_name(worker_id))

    def run_by_hand(self, name, image):
        """A container of the same image that is no worker's."""
        self._engine.create(name, {"Image": image, "Cmd": ["sleep", "60"]})
        self._engine.start(name)

    def removes_by_hand(self, name):
        """Whether it was still running; it is gone then."""
        was_running = self._engine.container(name).is_running
        self._engine.remove(name)
        return was_running

    def pid(self, worker_id):
        """The first process of a worker's container, as this machine knows it."""
        return self.inspect(worker_id)["State"]["Pid"]

    def host_pid(self, worker_id, pid):
        """A process of a worker's container by the pid that it has in there."""
        return host_pid(self.inspect(worker_id)["Id"], pid)

    def volumes(self):
        """Names of all volumes of the engine."""
        return {item["Name"] for item in self._engine._api.volumes()["Volumes"] or ()}

    def close(self):
        self._engine.close()


def host_pid(container_id, pid):
    """A process of a container by the pid that it has in there."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if container_id in (entry / "cgroup").read_text():
                lines = (entry / "status").read_text().splitlines()
                own = next(line for line in lines if line.startswith("NSpid:")).split()
                if own[-1] == str(pid):
                    return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"{container_id} has no process {pid}")
