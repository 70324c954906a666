"""The product with the ``ecs`` runner: the real command and a real server, on the tests' stand-in for AWS."""

import secrets
import socket

import docker
from tests.acceptance.product import Product

REPOSITORY = "functions"


class EcsProduct(Product):
    """A server whose functions are tasks of ``aws``, with a name of its own there; see `place_in`."""

    def __init__(self, folder, aws, place):
        super().__init__(folder)
        self._aws = aws
        self.environ.update(
            place,
            MULTINODE_ECS_NAME=f"t{secrets.token_hex(4)}",
            MULTINODE_WORKER_URL=worker_url(),
        )

    def call(self, *arguments, timeout_s=300, **variables):
        """With time for a first push of an image on a busy machine."""
        return super().call(*arguments, timeout_s=timeout_s, **variables)

    def workers_left(self):
        """The ARNs of its tasks that have not stopped."""
        name = self.environ["MULTINODE_ECS_NAME"]
        return [
            each["arn"]
            for each in self._aws.tasks()
            if each["tags"]["multinode:installation"] == name and each["status"] != "STOPPED"
        ]


def place_in(aws):
    """Makes a cluster and a repository; the variables of servers that use them."""
    made = aws.make_cluster()
    aws.client("ecr").create_repository(repositoryName=REPOSITORY, imageTagMutability="IMMUTABLE")
    return {
        **aws.environ,
        "MULTINODE_RUNNER": "ecs",
        "MULTINODE_REGISTRY": f"ecr:{REPOSITORY}",
        **{f"MULTINODE_ECS_{name.upper()}": value for name, value in made.items()},
    }


def worker_url():
    """Where tasks will reach a server of this machine; its port is free."""
    return f"http://{gateway()}:{_free_port()}"


def gateway():
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
