"""Which calls of AWS the control plane's code makes, and which its policies allow."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore import xform_name

SOURCE = Path(__file__).parents[2] / "src" / "multinode_control_plane"
SERVICES = {"ecr": "ecr", "ecs": "ecs", "logs": "logs", "secretsmanager": "secretsmanager", "sqs": "sqs", "events": "events"}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """One of a policy, with lists in place of single words."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: dict[str, Any]


def listed(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def statements(document: str) -> list[Statement]:
    """Of a policy's JSON. Fails where it denies, or says what is not meant."""
    found = []
    for each in json.loads(document)["Statement"]:
        assert each["Effect"] == "Allow"
        assert not {"NotAction", "NotResource"} & each.keys()
        conditions = each.get("Condition", {})
        actions, resources = listed(each["Action"]), listed(each["Resource"])
        found.append(Statement(each["Sid"], actions, resources, conditions))
    return found


def actions_of(found: Iterable[Statement]) -> set[str]:
    return {action for each in found for action in each.actions}


def operations() -> dict[str, set[str]]:
    """``describe_images`` to ``{"ecr:DescribeImages"}``: every operation of `SERVICES`."""
    session = boto3.session.Session("x", "x", region_name="eu-west-2")
    found: dict[str, set[str]] = {}
    for name, prefix in SERVICES.items():
        for operation in session.client(name).meta.service_model.operation_names:
            found.setdefault(xform_name(operation), set()).add(f"{prefix}:{operation}")
    return found


def called() -> set[str]:
    """The actions of all operations that modules name which ask AWS: ``service.call("describe_images", …)``."""
    known, found = operations(), set()
    for path in modules():
        for constant in strings(ast.parse(path.read_text())):
            found |= known.get(constant, set()) if "_" in constant else set()
    return found


def modules() -> Iterator[Path]:
    """Those that use `multinode_control_plane.aws`, or what uses it for them."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        if "multinode_control_plane.aws import" in text or "ecs_api import" in text:
            yield path


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
