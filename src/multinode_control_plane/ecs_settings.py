"""What the ``ecs`` runner is told of the account that it works in: the options ``--ecs-…``, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from multinode.errors import InputError

ARCHITECTURES = ("X86_64", "ARM64")
OPTIONS = {
    "ecs_cluster": "its ECS cluster",
    "ecs_subnets": "subnets of its tasks, e.g. subnet-0a1b,subnet-2c3d",
    "ecs_security_groups": "security groups of its tasks; the VPC's default one without it",
    "ecs_execution_role": "ARN of the role with which AWS fetches images and writes output",
    "ecs_task_role": "ARN of the role that functions have; none without it",
    "ecs_log_group": "CloudWatch log group of functions' output",
    "ecs_name": "this installation's name in the cluster; multinode without it",
    "ecs_architecture": f"{' or '.join(ARCHITECTURES)}; {ARCHITECTURES[0]} without it",
}
SWITCHES = {
    "ecs_public_ip": "give tasks public addresses, for subnets without a NAT gateway",
    "ecs_spot": "run on Fargate Spot: cheaper, and AWS may take a task's capacity away",
}
_NEEDED = ("ecs_cluster", "ecs_subnets", "ecs_execution_role", "ecs_log_group")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/.+")


@dataclass(frozen=True)
class EcsSettings:
    """An account's place for tasks. ``name`` tells installations in one cluster apart, and may never change while tasks live."""

    cluster: str
    subnets: tuple[str, ...]
    execution_role: str
    log_group: str
    security_groups: tuple[str, ...] = ()
    task_role: str = ""
    name: str = "multinode"
    architecture: str = ARCHITECTURES[0]
    public_ip: bool = False
    spot: bool = False

    @property
    def platform(self) -> str:
        """Of its images: ``linux/amd64`` or ``linux/arm64``."""
        return "linux/arm64" if self.architecture == "ARM64" else "linux/amd64"

    @property
    def tariff(self) -> str:
        """By which its tasks are paid: one of `prices.TARIFFS`."""
        return f"{self.architecture.lower()}{'-spot' if self.spot else ''}"


def resolve(given: Callable[[str], str | None], *, is_chosen: bool) -> EcsSettings | None:
    """The settings, from the value of each option; None where another runner serves. Raises InputError."""
    if not is_chosen:
        return None
    for name in _NEEDED:
        if not given(name):
            message = f"The runner ecs needs {_option(name)}: {OPTIONS[name]}."
            raise InputError(message, f"Give it, or set MULTINODE_{name.upper()}.")
    return EcsSettings(
        cluster=given("ecs_cluster") or "",
        subnets=_ids("ecs_subnets", given("ecs_subnets"), "subnet"),
        security_groups=_ids("ecs_security_groups", given("ecs_security_groups"), "sg"),
        execution_role=_role("ecs_execution_role", given("ecs_execution_role")),
        task_role=_role("ecs_task_role", given("ecs_task_role")),
        log_group=given("ecs_log_group") or "",
        name=_name(given("ecs_name")),
        architecture=_architecture(given("ecs_architecture")),
        public_ip=_switch(given("ecs_public_ip")),
        spot=_switch(given("ecs_spot")),
    )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _ids(name: str, text: str | None, kind: str) -> tuple[str, ...]:
    found = tuple(filter(None, map(str.strip, (text or "").split(","))))
    for each in found:
        if not re.fullmatch(rf"{kind}-[0-9a-z]+", each):
            message = f"{_option(name)}: {each!r:.100} is not an id of that kind."
            raise InputError(
                message, f"Write it like {kind}-0a1b2c3d, with commas between several."
            )
    return found


def _role(name: str, text: str | None) -> str:
    if text and not _ROLE.fullmatch(text):
        message = f"{_option(name)}: {text!r:.200} is not the ARN of a role."
        raise InputError(message, "Write it like arn:aws:iam::123456789012:role/name.")
    return text or ""


def _name(text: str | None) -> str:
    name = text or EcsSettings.name
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
        message = f"--ecs-name {name!r:.100} is no name of an installation."
        raise InputError(message, "Use up to 32 small letters, digits and hyphens, a letter first.")
    return name


def _architecture(text: str | None) -> str:
    found = (text or ARCHITECTURES[0]).upper()
    if found not in ARCHITECTURES:
        message = f"--ecs-architecture {text!r:.100} is none that Fargate has."
        raise InputError(message, f"Use one of: {', '.join(ARCHITECTURES)}.")
    return found


def _switch(value: object) -> bool:
    return value is True or str(value).lower() in ("1", "true", "yes")
