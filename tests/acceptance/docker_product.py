"""The product with the ``docker`` runner, on any engine, with an image made by hand."""

import hashlib
import io
import tarfile
from contextlib import closing

import docker
from tests.acceptance.product import Product
from tests.hand_made_image import build_image

from multinode.distribution import sdk_digest
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    DescribeAnswer,
    DescribeRequest,
    Empty,
    EnvironmentInfo,
    EnvironmentSpec,
    RegisterAnswer,
    RegisterRequest,
    loads,
)


class ContainerProduct(Product):
    """A server with the docker runner."""

    def __init__(self, folder, engine_url=""):
        super().__init__(folder)
        self.environ["MULTINODE_RUNNER"] = "docker"
        if engine_url:
            self.environ["DOCKER_HOST"] = engine_url

    @property
    def label(self):
        installation = (self.folder / "home" / "server" / "installation").read_text()
        return f"multinode.installation={installation}"

    def workers_left(self):
        """The ids of containers."""
        url = self.environ.get("DOCKER_HOST")
        with closing(docker.DockerClient(url) if url else docker.from_env()) as engine:
            label = {"label": [self.label, "multinode.worker"]}
            found = engine.containers.list(all=True, filters=label, ignore_removed=True)
            return [each.id for each in found]


class DockerProduct(ContainerProduct):
    """``deploy`` is by hand, with an image made by hand in the engine of ``environ``."""

    def deploy(self, main, dotenv=None, project="shop"):
        with closing(self.client()) as client:
            return deploy_by_hand(client, self.environ, main, dotenv, project)


def deploy_by_hand(client, environ, main, dotenv=None, project="shop"):
    """Deploys what ``main`` is the text of, with an image made by hand in the engine of ``environ``."""
    spec = EnvironmentSpec(python="3.8")
    request = BuildRequest(spec, sdk_digest=sdk_digest())
    path = f"/v1/projects/{project}"
    lines = client.stream("POST", f"{path}/environments", request)
    event = [loads(BuildEvent, line) for line in lines if line.strip()][-1]
    if event.environment is None:
        order = event.image_order
        report = build_image(order, spec, environ)
        event = BuildEvent(
            environment=client.call(
                EnvironmentInfo, "PUT", f"{path}/environments/{order.digest}", report
            )
        )
    archive = bundle(main)
    digest = hashlib.sha256(archive).hexdigest()
    client.call(Empty, "PUT", f"/v1/bundles/{digest}", archive)
    environment, dotenv = event.environment.digest, dotenv or {}
    described = client.call(
        DescribeAnswer,
        "POST",
        f"{path}/describe",
        DescribeRequest(environment, digest, dotenv),
        wait_s=60,
    )
    return client.call(
        RegisterAnswer,
        "POST",
        f"{path}/versions",
        RegisterRequest(environment, digest, dotenv, described.functions, create=True),
    )


class BuiltDockerProduct(ContainerProduct):
    """Deploys build the images, in any engine with a ``url``."""

    def __init__(self, folder, engine):
        super().__init__(folder, engine.url)

    def call(self, *arguments, timeout_s=300, **variables):
        """With time for a first build on a busy machine."""
        return super().call(*arguments, timeout_s=timeout_s, **variables)


def bundle(main):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        item = tarfile.TarInfo("main.py")
        item.size = len(main.encode())
        tar.addfile(item, io.BytesIO(main.encode()))
    return made.getvalue()
