"""The tests' own stand-in for AWS: moto in a process of its own, where ECR has a registry behind it, and ECS runs containers.

    with StandIn(folder) as aws:
        aws.client("ecr").create_repository(repositoryName="multinode")
        aws.fault("GetAuthorizationToken", "error", code="ThrottlingException", message="Rate exceeded")

A program finds it through ``aws.environ``. What it is like, and what AWS is like: ``README.md`` here.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.aws.calls import ACCOUNT, REGION
from tests.images.bench import htpasswd_line, registry_process
from tests.images.immutable_registry import immutable

REPOSITORY_ROOT = Path(__file__).parents[2]


class StandIn:
    """``url`` is where AWS's APIs answer, ``registry`` the address of ECR's registry.

    ``keeps_tags``: the registry lets no tag be moved, as where a repository is made with ``imageTagMutability=IMMUTABLE``.
    """

    def __init__(self, folder: Path, *, keeps_tags: bool = False) -> None:
        self._folder = folder
        self._keeps_tags = keeps_tags
        self._stack = ExitStack()
        self.url = ""
        self.registry = ""
        self.mark = secrets.token_hex(6)
        """In the label ``multinode.stand-in`` of all containers."""

    def __enter__(self) -> StandIn:
        with ExitStack() as stack:
            password = secrets.token_hex(8)
            folder = self._folder / "registry"
            folder.mkdir()
            users = {"AWS": password}
            self.registry = stack.enter_context(
                registry_process(folder, users, allows_removal=True)
            )
            if self._keeps_tags:
                self.registry = stack.enter_context(immutable(self.registry))
            self._start(stack, {"registry": self.registry, "password": password, "mark": self.mark})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, known: dict[str, Any]) -> None:
        log = stack.enter_context((self._folder / "stand-in.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.aws.server"],
            cwd=REPOSITORY_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        stack.callback(_end, process)
        process.stdin.write(json.dumps(known).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, (self._folder / "stand-in.log").read_text()
        self.url = json.loads(line)["url"]

    @property
    def environ(self) -> dict[str, str]:
        """Variables with which boto3 finds the stand-in, and may use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "stand-in",
            "AWS_SECRET_ACCESS_KEY": "stand-in",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> Any:
        """A client of boto3 that tries each call once."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="stand-in",
            aws_secret_access_key="stand-in",
            config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
        )

    def fault(self, operation: str, kind: str, **details: Any) -> None:
        """From now on the next calls of ``operation`` (``*``: of any) are spoilt: see ``gate``."""
        self.tell("fault", operation=operation, kind=kind, **details)

    def no_faults(self) -> None:
        """Takes back what was not met yet."""
        self.tell("no-faults")

    def calls(self, operation: str) -> list[dict[str, Any]]:
        """The bodies of all calls of this operation, in order, refused ones too."""
        return [item["body"] for item in self.tell("calls", operation=operation)]

    def next_task(self, **orders: Any) -> None:
        """How the next task that is run will fare: ``cold_start_s``, ``stopped_reason`` (it fails to start), ``no_containers``."""
        self.tell("next-task", **orders)

    def set(self, **values: Any) -> None:
        """Of all tasks: ``cold_start_s``, ``hidden_s`` (new ones are MISSING so long), ``log_delay_s``, ``deprovision_s``,
        ``shared_folder`` (of this machine, seen by all containers)."""
        self.tell("set", **values)

    def interrupt(self, arn: str) -> None:
        """Takes a task's capacity away, as Fargate Spot does."""
        self.tell("interrupt", task=arn)

    def tasks(self) -> list[dict[str, Any]]:
        """All that there were: ``arn``, ``status`` and ``tags``."""
        return [
            {**each, "tags": {tag["key"]: tag["value"] for tag in each["tags"]}}
            for each in self.tell("tasks")
        ]

    def forget_stopped_tasks(self) -> None:
        """As ECS does, an hour after they stopped."""
        self.tell("forget-tasks")

    def make_cluster(self) -> dict[str, str]:
        """What Terraform would make: cluster, log group, roles by name, the ids of a subnet and a security group."""
        self.client("ecs").create_cluster(clusterName="multinode")
        self.client("logs").create_log_group(logGroupName="/multinode/workers")
        role = f"arn:aws:iam::{ACCOUNT}:role"
        return {
            "cluster": "multinode",
            "log_group": "/multinode/workers",
            "execution_role": f"{role}/execution",
            "task_role": f"{role}/task",
            "subnets": "subnet-0a1b2c3d",
            "security_groups": "sg-0a1b2c3d",
        }

    def expire_tokens(self) -> None:
        """ECR's tokens so far are void from now on."""
        password = secrets.token_hex(8)
        (self._folder / "registry" / "htpasswd").write_text(htpasswd_line("AWS", password))
        self.tell("password", password=password)

    def tell(self, what: str, **details: Any) -> Any:
        """Says something to the stand-in's own door, and returns its answer."""
        request = urllib.request.Request(
            f"{self.url}/stand-in/{what}", data=json.dumps(details).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)
    process.stdin.close()
    process.stdout.close()
