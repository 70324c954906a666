"""A Docker engine of a test's own, which may be stopped, killed and started again; needs root and ``dockerd``.

Nothing of it meets the engine that everybody shares: a folder, a socket, a containerd and subnets of its own. It makes no rules for
iptables, which both would take for theirs: its containers reach this machine and nothing else, which is all that workers need.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from tests.hand_made_image import BASE, needs_engine

from multinode_control_plane.runners.worker_processes import is_living

WAIT_S = 60.0


def needs_own_engine() -> None:
    """Skips where none can be started; with CI=true that is a failure."""
    needs_engine()  # the base image comes from it
    reason = ""
    if os.geteuid():
        reason = "only root can start a Docker engine"
    elif shutil.which("dockerd") is None:
        reason = "there is no dockerd"
    if reason:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


class OwnEngine:
    """``url`` is its DOCKER_HOST. It is not running when it is made."""

    def __init__(self, folder: Path) -> None:
        import docker

        self.folder = folder
        self.url = f"unix://{folder}/s"
        self.options: tuple[str, ...] = ()
        """More of ``dockerd``, from its next start on."""
        self.client = docker.DockerClient(base_url=self.url, version="1.40", timeout=WAIT_S)
        self._pool = f"base=10.{random.randrange(192, 255)}.0.0/16,size=24"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [
                    "dockerd",
                    f"--host={self.url}",
                    f"--data-root={self.folder}/data",
                    f"--exec-root={self.folder}/exec",
                    f"--pidfile={self.folder}/pid",
                    "--bridge=none",
                    "--iptables=false",
                    f"--default-address-pool={self._pool}",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + WAIT_S
        while not self._answers():
            assert self._daemon.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def _answers(self) -> bool:
        with socket.socket(
            socket.AF_UNIX
        ) as tried:  # docker-py leaves its own open where nobody listens
            try:
                tried.connect(f"{self.folder}/s")
            except OSError:
                return False
        return bool(self.client.ping())  # waits until it has come up

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Sends it this signal, and returns when it is gone."""
        daemon, self._daemon = self._daemon, None
        assert daemon is not None
        daemon.send_signal(number)
        daemon.wait(WAIT_S)

    def kill(self) -> None:
        """Ends it so that it notices nothing. Its containers, and the containerd that it started, live on."""
        self.stop(signal.SIGKILL)

    def log(self) -> str:
        """The end of what it said."""
        return (self.folder / "log").read_text()[-4000:]

    def load(self, name: str) -> None:
        """Copies an image from the engine that all share."""
        import docker

        with closing(docker.from_env()) as shared:
            self.client.images.load(shared.images.get(name).save(named=name))

    def things(self) -> set[str]:
        """All that it has of containers, volumes, networks and images."""
        api = self.client.api
        return {
            *(f"container {item['Id']}" for item in api.containers(all=True)),
            *(f"volume {item['Name']}" for item in api.volumes()["Volumes"] or ()),
            *(f"network {item['Name']}" for item in api.networks()),
            *(f"image {item['Id']}" for item in api.images(all=True)),
        }

    def close(self) -> None:
        """Ends it and all that it has started, and takes its mounts and bridges away."""
        with suppress(Exception):  # what follows has to be done whatever has become of it
            if self._daemon is None:
                self.start()
            for container in self.client.containers.list(all=True, ignore_removed=True):
                container.remove(v=True, force=True)
            self.client.networks.prune()
        if self._daemon is not None:
            self.stop()
        self.client.close()
        self._end_containerd()
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (path := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", path], check=False)

    def _end_containerd(self) -> None:
        """The one that it started; it outlives a dockerd that was killed."""
        try:
            pid = int((self.folder / "exec/containerd/containerd.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return
        if os.fsencode(self.folder) in command:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + WAIT_S
            while is_living(pid):
                assert time.monotonic() < deadline, "containerd does not end"
                time.sleep(0.01)


@contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """One that runs and has the base image."""
    needs_own_engine()
    folder = Path(
        tempfile.mkdtemp(prefix="mn-")
    )  # short: a socket's path has 107 characters at most
    try:
        made = OwnEngine(folder)
        try:
            made.start()
            made.load(BASE)
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder)
