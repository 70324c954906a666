"""The product with the ``ecs`` runner: the real command and a real server, on the tests' stand-in for AWS."""

import socket

import docker
from tests.acceptance.product import Product

REPOSITORY = "functions"


class EcsProduct(Product):
    """A server whose functions are tasks of ``aws``, which see ``shared`` under its own path."""

    def __init__(self, folder, aws, shared):
        super().__init__(folder)
        made = aws.make_cluster()
        aws.client("ecr").create_repository(
            repositoryName=REPOSITORY, imageTagMutability="IMMUTABLE"
        )
        shared.chmod(0o755)  # a task runs as another user
        aws.set(shared_folder=str(shared))
        url = f"http://{_gateway()}:{_free_port()}"
        self.environ.update(
            aws.environ,
            MULTINODE_RUNNER="ecs",
            MULTINODE_REGISTRY=f"ecr:{REPOSITORY}",
            MULTINODE_WORKER_URL=url,
            **{f"MULTINODE_ECS_{name.upper()}": value for name, value in made.items()},
        )

    def call(self, *arguments, timeout_s=300, **variables):
        """With time for a first push of an image on a busy machine."""
        return super().call(*arguments, timeout_s=timeout_s, **variables)


def _gateway():
    """Where containers reach this machine."""
    engine = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
    try:
        return engine.inspect_network("bridge")["IPAM"]["Config"][0]["Gateway"]
    finally:
        engine.close()


def _free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
