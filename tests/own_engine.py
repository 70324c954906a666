"""A Docker engine of a test's own, which may be stopped, killed and started again; needs root and ``dockerd``.

Nothing of it meets the engine that everybody shares: a folder, a socket, a containerd, a bridge of its own. It makes no rules for
iptables, which both would take for theirs: its containers reach this machine and nothing else, which is all that workers need. It is
told neither ``--bridge=none`` nor ``--default-address-pool``: with these it would remove ``docker0``, which is the other engine's, at its
first or second start (seen with 20.10.24). Its containerd outlives it, as a system's does.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from tests.hand_made_image import BASE, needs_engine

WAIT_S = 60.0
SHARED_BRIDGE = Path("/sys/class/net/docker0")
CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/exec/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/c"
"""


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
        number = random.randrange(192, 255)
        self._bridge = f"mn-{secrets.token_hex(4)}"
        self.gateway = f"10.{number}.255.1"
        """This machine's address in its containers."""
        self._daemon: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._make_bridge()
        if self._containerd is None:
            (self.folder / "containerd.toml").write_text(CONTAINERD.format(folder=self.folder))
            self._containerd = self._run("containerd", f"--config={self.folder}/containerd.toml")
            self._wait_for(self._containerd, lambda: (self.folder / "c").exists())
        self._daemon = self._run(
            "dockerd",
            f"--host={self.url}",
            f"--containerd={self.folder}/c",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--bridge={self._bridge}",
            "--iptables=false",
            *self.options,
        )
        self._wait_for(self._daemon, self._answers)

    def _make_bridge(self) -> None:
        if Path("/sys/class/net", self._bridge).exists():
            return
        for command in (
            ["link", "add", self._bridge, "type", "bridge"],
            ["address", "add", f"{self.gateway}/24", "dev", self._bridge],
            ["link", "set", self._bridge, "up"],
        ):
            subprocess.run(["ip", *command], check=True)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_for(self, daemon: subprocess.Popen[bytes], fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not fact():
            assert daemon.poll() is None, self.log()
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
        """Ends it so that it notices nothing: its containers, and their containerd, live on."""
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
        self.client.close()
        for daemon in filter(None, (self._daemon, self._containerd)):
            daemon.terminate()
            daemon.wait(WAIT_S)
        for pid in self._shims():
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "link", "delete", self._bridge], check=False)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (path := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", path], check=False)

    def _shims(self) -> list[int]:
        """What is left where it could not remove its containers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if os.fsencode(f"-address\0{self.folder}/") in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


@contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """One that runs and has the base image."""
    needs_own_engine()
    had_bridge = SHARED_BRIDGE.exists()
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
    assert SHARED_BRIDGE.exists() == had_bridge, "the engine that all share has lost its bridge"
