"""Faults that are planted into infra/aws are found: so the other tests here can fail. And what variables refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.terraform.bench import VARIABLES, Done, Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
BREAKER = "deployment_circuit_breaker {"
FAULTS = [
    ("database.tf", "storage_encrypted ", "storage_encryption ", 'named "storage_encryption" is not expected'),
    ("cluster.tf", "image_tag_mutability", "image_tag_mutabilty", 'Did you mean "image_tag_mutability"'),
    ("database.tf", "  instance_class  ", "  # instance_class  ", 'argument "instance_class" is required'),
    ("database.tf", "aws_db_instance.this.address", "aws_db_instance.this.addres", "no argument, nested block, or exported attribute"),
    ("load_balancers.tf", "health_check {", "healthcheck {", 'Blocks of type "healthcheck"'),
    ("control_plane.tf", BREAKER, f"{BREAKER}\n    enable   = true\n    rollback = true\n  }}\n  {BREAKER}", "No more than 1"),
    ("alarms.tf", "period              = 60", 'period              = "often"', "a number is required"),
    ("secrets.tf", "secret_string_wo  ", "secret_string     ", "Invalid use of ephemeral value"),
    ("roles.tf", "aws_iam_role.functions.arn", "aws_iam_role.function.arn", "has not been declared"),
]  # fmt: skip
"""File, what is replaced by what, and what Terraform says."""
ALONE: list[tuple[dict[str, Any], str]] = [
    ({"name": "Multinode"}, "lower-case letters"),
    ({"name": "multi--node"}, "beside another"),
    ({"domain_name": "https://multinode.example.com"}, "without https://"),
    ({"client_cidr_blocks": ["203.0.113.0"]}, "Each is a network"),
    ({"image": "multinode-server"}, "named with its registry"),
    ({"image": "registry.example.com/multinode-server:latest"}, "not :latest"),
    ({"vpc_cidr_block": "10.0.0.0/24"}, "/16 to /20"),
    ({"settings": {"MULTINODE_REGISTRY_KEY": "x"}}, "readable in the task definition"),
    ({"log_retention_days": 31}, "CloudWatch keeps logs"),
    ({"existing_vpc": {"vpc_id": "vpc-1", "public_subnet_ids": ["a"], "private_subnet_ids": ["b", "c"]}}, "two availability zones"),
    ({"function_security_group_ids": list("abcde")}, "five security groups"),
    ({"function_cpu_architecture": "arm64"}, "X86_64 or ARM64"),
    ({"control_plane_count": 0}, "1 to 10"),
    ({"database": {"backup_retention_days": 0}}, "1 to 35 days"),
]  # fmt: skip
BESIDE_OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"route53_zone_id": None}, "A certificate is needed"),
    ({"nat_gateways": 3}, "One NAT gateway"),
]
"""What does not go with another variable; Terraform looks for that where each is right by itself."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.copy(tmp_path)


def told(done: Done) -> str:
    """Without line breaks and the frames around errors."""
    return " ".join(done.output.replace("│", " ").split())


def test_terraform_finds_what_the_provider_would_not_take(workspace: Workspace) -> None:
    for name, old, new, said in FAULTS:
        path = workspace.module / name
        text = path.read_text()
        assert old in text, f"{name} has no {old!r} any more"
        path.write_text(text.replace(old, new, 1))
        done = workspace.run("validate")
        path.write_text(text)
        assert done.code == 1, f"{name}: {new!r} is not found"
        assert said in told(done), done


@pytest.mark.parametrize("refused", [ALONE, BESIDE_OTHERS], ids=["alone", "beside-others"])
def test_variables_that_cannot_be_are_refused(
    workspace: Workspace, refused: list[tuple[dict[str, Any], str]]
) -> None:
    calls = {
        f"number_{number}": {"source": "../aws", **VARIABLES["complete"], **change}
        for number, (change, _) in enumerate(refused)
    }
    root = workspace.folder / "calls"
    root.mkdir()
    (root / "main.tf.json").write_text(json.dumps({"module": calls}))
    assert workspace.run("init", "-backend=false", folder=root).code == 0
    done = workspace.run("plan", "-lock=false", folder=root)
    assert done.code == 1
    assert [said for _, said in refused if said not in told(done)] == [], done
