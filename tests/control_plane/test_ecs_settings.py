"""The ``--ecs-…`` settings."""

import json

import pytest

from multinode.errors import InputError
from multinode_cli.commands.local_server import RunningServer, restart_options
from multinode_control_plane.settings import parser, resolve

ROLE = "arn:aws:iam::123456789012:role/execution"
GIVEN = {
    "MULTINODE_RUNNER": "ecs",
    "MULTINODE_REGISTRY": "ecr:multinode",
    "MULTINODE_WORKER_URL": "https://mn.example",
    "MULTINODE_ECS_CLUSTER": "functions",
    "MULTINODE_ECS_SUBNETS": "subnet-1, subnet-2",
    "MULTINODE_ECS_EXECUTION_ROLE": ROLE,
    "MULTINODE_ECS_LOG_GROUP": "/functions",
}


def settings(tmp_path, *argv, **environ):
    options = parser().parse_args([f"--home={tmp_path}", *argv])
    return resolve(options, {name: value for name, value in environ.items() if value})


def test_what_is_given_is_read(tmp_path):
    found = settings(tmp_path, "--ecs-spot", "--ecs-architecture=arm64", **GIVEN).ecs
    assert (found.cluster, found.subnets) == ("functions", ("subnet-1", "subnet-2"))
    assert (found.name, found.spot, found.public_ip) == ("multinode", True, False)
    assert (found.architecture, found.platform) == ("ARM64", "linux/arm64")
    assert settings(tmp_path, "--ecs-cluster=x", MULTINODE_RUNNER="process").ecs is None


def test_a_restart_keeps_what_was_given_as_options(tmp_path):
    variables = {name: value for name, value in GIVEN.items() if "ECS" not in name}
    argv = [
        f"--{name[10:].lower().replace('_', '-')}={value}"
        for name, value in GIVEN.items()
        if "ECS" in name
    ]
    made = settings(tmp_path, *argv, "--ecs-spot", "--ecs-name=second", **variables)
    options = json.loads(json.dumps(made.options()))  # as they stand in server.json
    server = RunningServer("http://127.0.0.1:9", "key", 1, made.data_dir, options)
    again = settings(tmp_path, *restart_options(server))
    assert again.ecs == made.ecs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MULTINODE_ECS_CLUSTER": ""}, "needs --ecs-cluster"),
        ({"MULTINODE_ECS_LOG_GROUP": ""}, "needs --ecs-log-group"),
        ({"MULTINODE_ECS_SUBNETS": "vpc-1"}, "'vpc-1' is not an id"),
        ({"MULTINODE_ECS_SECURITY_GROUPS": "subnet-1"}, "'subnet-1' is not an id"),
        ({"MULTINODE_ECS_EXECUTION_ROLE": "execution"}, "not the ARN of a role"),
        ({"MULTINODE_ECS_TASK_ROLE": "task"}, "not the ARN of a role"),
        ({"MULTINODE_ECS_NAME": "Mine!"}, "no name of an installation"),
        ({"MULTINODE_ECS_ARCHITECTURE": "sparc"}, "none that Fargate has"),
        ({"MULTINODE_REGISTRY": ""}, "repository of ECR"),
        ({"MULTINODE_REGISTRY": "r.example.com/x"}, "repository of ECR"),
        ({"MULTINODE_WORKER_URL": ""}, "needs --worker-url"),
        ({"MULTINODE_WORKER_URL": "http://127.0.0.1:9470"}, "leads a task to itself"),
        ({"MULTINODE_WORKER_URL": "http://[::1]:9470"}, "leads a task to itself"),
    ],
)
def test_what_is_missing_or_wrong_is_told(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        settings(tmp_path, **{**GIVEN, **changes})
