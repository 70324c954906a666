"""A real Docker engine, and what is made in it: found again by a label, and removed."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import docker.errors
import pytest

from multinode import wire
from multinode_cli.images.making import make_image
from multinode_cli.images.pip_settings import index_settings

LABEL = "multinode.test"
FETCHED = Path(__file__).parents[2] / ".buildx/docker-buildx"
"""Where ``.ci/buildx`` puts it."""


def missing(what):
    """Skips; where CI runs, what is missing is a failure."""
    pytest.fail(what) if os.environ.get("CI") else pytest.skip(what)


class Follower:
    """Remembers what it is told, and calls ``on_step`` with each step."""

    def __init__(self, on_step=lambda title: None):
        self.steps, self.told = [], []
        self.on_step = on_step

    def step(self, title):
        self.steps.append(title)
        self.told.append(title)
        self.on_step(title)

    def line(self, text):
        self.told.append(text)

    def moment(self, text):
        self.told.append(text)


class Bench:
    """An engine, and a base image of this bench alone, so that everything made from it carries its label."""

    def __init__(self, api):
        self.api = api
        self.mark = uuid.uuid4().hex
        self.labels = {LABEL: self.mark}
        self.follower = Follower()
        self.another_login = lambda: None

    @contextmanager
    def open(self):
        try:
            yield self
        finally:
            self.clear()

    def base(self, source="python:3.8-bullseye"):
        """A base image like ``source``, which carries the label."""
        name = f"multinode-test-base:{self.mark}"
        container = self.api.create_container(source, ["true"])["Id"]
        try:
            changes = [f"LABEL {LABEL}={self.mark}"]
            repository, tag = name.split(":")
            self.api.commit(container, repository, tag, changes=changes)
        finally:
            self.api.remove_container(container)
        return name

    def order(self, digest, registry=None, platform=None):
        repository = registry.repository if registry else f"multinode-test-{self.mark[:8]}"
        version = self.api.version()
        platform = platform or f"{version['Os']}/{version['Arch']}"
        tag = f"{repository}:{digest}"
        return wire.ImageOrder(digest, platform, tag, self.labels, registry)

    def make(
        self,
        spec,
        *,
        registry=None,
        digest="d" * 64,
        platform=None,
        no_cache=False,
        follower=None,
        **environ,
    ):
        """Makes an image with the classic builder (there is no docker command on the path) and reports it."""
        self.follower = follower or Follower()
        given = {"PATH": "", "HOME": "/nonexistent", "PIP_CONFIG_FILE": os.devnull, **environ}
        given |= {k: v for k, v in os.environ.items() if k.startswith("DOCKER_") and k not in given}
        order = self.order(digest, registry, platform)
        spec = spec.replace(settings=index_settings({**given, **(spec.settings or {})}))
        return make_image(
            order,
            spec,
            self.follower,
            environ=given,
            no_cache=no_cache,
            another_login=self.another_login,
        )

    def run(self, image, *command, **options):
        """What a command in a container of the image prints."""
        host = self.api.create_host_config(network_mode="none", **options)
        made = self.api.create_container(
            image, list(command), labels=self.labels, host_config=host
        )["Id"]
        try:
            self.api.start(made)
            status = self.api.wait(made)["StatusCode"]
            said = self.api.logs(made).decode()
            assert status == 0, said
            return said
        finally:
            self.api.remove_container(made, force=True, v=True)

    def images(self):
        """The ids of all images with the label, those of layers too."""
        found = self.api.images(all=True, filters={"label": f"{LABEL}={self.mark}"})
        return {image["Id"] for image in found}

    def containers(self):
        found = self.api.containers(all=True, filters={"label": f"{LABEL}={self.mark}"})
        return {container["Id"] for container in found}

    def layers(self, image):
        """Each layer of an image with its parents, newest last."""
        return self.api.inspect_image(image)["RootFS"]["Layers"]

    def clear(self):
        for container in self.containers():
            self.api.remove_container(container, force=True, v=True)
        before = None
        while (left := self.images()) and left != before:  # a parent goes after its children
            before = left
            for image in left:
                with suppress(docker.errors.APIError):
                    self.api.remove_image(image, force=True)


def with_buildx(folder):
    """The environment in which the docker command has buildx, with ``folder`` for what it keeps."""
    environ = {"PATH": os.environ["PATH"], "DOCKER_CONFIG": str(folder)}
    if FETCHED.exists():
        plugins = folder / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-buildx").symlink_to(FETCHED)
    if not says(["docker", "buildx", "version"], environ):
        missing("the docker command has no buildx here (`.ci/buildx .buildx` fetches it)")
    return environ


def says(command, environ=None):
    """What a command prints; empty where it fails, or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    return done.stdout if done.returncode == 0 else ""


def everything_saved(api, image):
    """The name and content of each file in each layer of ``docker save``, and its JSON files."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(api.get_image(image)))) as saved:
        for entry in saved:
            if not entry.isreg():
                continue
            data = saved.extractfile(entry).read()
            if not entry.name.endswith("layer.tar"):
                yield entry.name, data
                continue
            with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                for file in layer:
                    content = layer.extractfile(file).read() if file.isreg() else b""
                    yield f"{entry.name}:{file.name}", content


@contextmanager
def registry_process(folder, users=None, *, allows_removal=False):
    """A registry on loopback: Debian's ``docker-registry``, with ``users`` and their passwords."""
    command = shutil.which("docker-registry")
    if command is None:
        missing("docker-registry is not installed (apt-get install docker-registry)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "delete": {"enabled": allows_removal},
        },
        "http": {"addr": address},
    }
    if users:
        passwords = folder / "htpasswd"
        passwords.write_text("".join(htpasswd_line(*user) for user in users.items()))
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(passwords)}}
    path = folder / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([command, "serve", str(path)], stdout=log, stderr=log)
    try:
        _until_listening(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def htpasswd_line(user, password):
    """The line of an htpasswd file."""
    command = shutil.which("htpasswd")
    if command is None:
        missing("htpasswd is not installed (apt-get install apache2-utils)")
    done = subprocess.run(
        [command, "-Bbn", user, password], capture_output=True, text=True, check=True
    )
    return done.stdout.strip() + "\n"


def _until_listening(address, process):
    host, _, port = address.partition(":")
    while process.poll() is None:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
    pytest.fail(f"docker-registry ended with {process.returncode}")


@contextmanager
def relay(path, tls=None):
    """Relays TCP connections on loopback, with the SSLContext ``tls``, to the engine's socket; yields ``DOCKER_HOST`` and
    the connections so far."""
    connections = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def secured(client):
        made = tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        try:
            made.do_handshake()
        except OSError:  # whom we do not let in: it reads why before it is closed
            with suppress(OSError), made:
                made.shutdown(socket.SHUT_WR)
                while made.recv(65536):
                    pass
            raise
        return made

    def begin(client):
        with suppress(OSError):
            client = secured(client) if tls else client
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(path)
            connections.append((client, engine))
            threading.Thread(target=pump, args=(engine, client), daemon=True).start()
            pump(client, engine)

    def serve():
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=begin, args=(client,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}", connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for pair in connections:
            for end in pair:
                end.close()


def engine_socket():
    """The path of the engine's socket; the test is skipped where it has none."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://") or not Path(address.removeprefix("unix://")).exists():
        missing(f"the engine at {address} is not reached through a socket here")
    return address.removeprefix("unix://")
