"""A worker's task: how it is defined and run, how it is told apart, and how its end reads. Pure: nothing here asks AWS."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multinode.wire import WorkerSize
from multinode.worker.launch import ARGUMENTS, Launch
from multinode_control_plane.ecs_settings import EcsSettings
from multinode_control_plane.runners import NO_CAPACITY, PULLING, WorkerEnd, WorkerLaunch
from multinode_control_plane.runners.fargate_sizes import cpu_units
from multinode_control_plane.runners.worker_exits import read_exit

CONTAINER = "worker"
HOME = "/work"
USER = "1000:1000"
STOP_TIMEOUT_S = 120
"""The longest that Fargate waits between SIGTERM and SIGKILL."""
NAME_TAG, WORKER_TAG, EXECUTION_TAG = (
    "multinode:installation",
    "multinode:worker",
    "multinode:execution",
)

_SPOT = {"capacityProviderStrategy": [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]}
_STOPPED = "STOPPED"
_OUT_OF_MEMORY = "OutOfMemoryError"
_FAILURES = (
    (r"rate exceeded|throttl|toomanyrequests", "AWS has had too many requests; it is tried again"),
    (r"vCPUs? you can run concurrently|limit on the number of (tasks|vCPU)", "the account's quota of Fargate vCPUs is used up; "
     "it is tried again, and Service Quotas raises it"),
    (r"capacity is unavailable|RESOURCE:|no capacity|Spot capacity", "Fargate has no capacity for it now; it is tried again, and subnets in "
     "other availability zones help"),
    (r"free addresses|InsufficientFreeAddresses|no available IP", "the subnets have no free address; it is tried again when tasks have ended, and "
     "larger subnets help"),
    (r"network interface provisioning|Create Network Interface|\bENI\b", "its network interface could not be made; it is tried again. Do subnets and "
     "security groups belong to one VPC?"),
    (r"CannotPullContainer.*(not found|manifest unknown|does not exist)", "its image is not in ECR any more: deploy again"),
    (r"CannotPullContainer.*no space left", "its image does not fit into the 20 GiB of a task's disk"),
    (r"CannotPullContainer.*(exec format|no match for platform|platform)", "its image is for another CPU architecture: deploy again"),
    (r"CannotPullContainer.*(timeout|deadline|dial tcp|no route|connection)", "the subnets have no way to ECR: they need a NAT gateway, "
     "VPC endpoints, or --ecs-public-ip"),
    (r"CannotPullContainer.*(denied|authori|403|credential)", "the execution role may not fetch its image from ECR"),
    (r"ResourceInitialization.*(validate logger|log group|log stream|awslogs|CloudWatch)", "its output cannot be written: is the log group there, and "
     "may the execution role write to it?"),
    (r"ResourceInitialization.*(unable to pull|secrets|registry auth)", "the subnets have no way to ECR, or the execution role may not read from it"),
    (r"unable to assume|assume.*role", "ECS may not use its roles: both need a trust policy for ecs-tasks.amazonaws.com"),
)  # fmt: skip
"""What AWS says (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/stopped-task-error-codes.html, 2026-11-24), in which
order it is looked for, and what it means here."""
FULL = 4
"""How many of them, from the first on, mean that there is no room now."""


@dataclass(frozen=True)
class TaskPlan:
    """What all tasks of a runner have in common."""

    settings: EcsSettings
    region: str
    stop_timeout_s: int = STOP_TIMEOUT_S


# --- defining and running it -----------------------------------------------------------------------------


def make_definition(plan: TaskPlan, image: str, size: WorkerSize) -> dict[str, Any]:
    """The arguments of RegisterTaskDefinition, for all workers of one environment and size. No secret is in it.

    Its family says what is in it: another content has another family, so that one which is there need not be compared. Not of a
    read-only root, unlike a container of the ``docker`` runner: there a volume is its owner's alone, and that is root.
    """
    settings = plan.settings
    log = {
        "awslogs-group": settings.log_group,
        "awslogs-region": plan.region,
        "awslogs-stream-prefix": settings.name,
    }
    container = {
        "name": CONTAINER,
        "image": image,
        "essential": True,
        "entryPoint": ["python", *ARGUMENTS],
        "command": [],
        "user": USER,
        "workingDirectory": HOME,
        "environment": [{"name": "HOME", "value": HOME}],
        "memory": size.memory_mib,
        "stopTimeout": plan.stop_timeout_s,
        "linuxParameters": {"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}},
        "logConfiguration": {"logDriver": "awslogs", "options": log},
    }
    definition = {
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": str(cpu_units(size)),
        "memory": str(size.memory_mib),
        "executionRoleArn": settings.execution_role,
        **({"taskRoleArn": settings.task_role} if settings.task_role else {}),
        "runtimePlatform": {
            "cpuArchitecture": settings.architecture,
            "operatingSystemFamily": "LINUX",
        },
        "containerDefinitions": [container],
    }
    text = json.dumps(definition, sort_keys=True)
    family = family_prefix(settings.name) + hashlib.sha256(text.encode()).hexdigest()[:32]
    tags = [{"key": NAME_TAG, "value": settings.name}]
    return {"family": family, "tags": tags, **definition}


def family_prefix(name: str) -> str:
    """How the families of an installation begin."""
    return f"multinode-{name}-worker-"


STOPPED_AFTER_S = 30.0
"""How long after its container's end a task is usually STOPPED."""


def make_launch(launch: WorkerLaunch, api_url: str, size: WorkerSize) -> Launch:
    """What the worker is told: ids and the claim code. It fetches all else, variables for its interpreter too."""
    return Launch(
        worker_id=launch.worker_id,
        claim_code=launch.claim_code,
        api_url=api_url,
        work_dir=f"{HOME}/{launch.worker_id}",
        memory_mib=size.memory_mib,
        asks_for_env=True if launch.fresh_interpreter else None,
    )


def make_run(plan: TaskPlan, definition: str, launch: WorkerLaunch, told: Launch) -> dict[str, Any]:
    """The arguments of RunTask. The token makes it one task, however often it is asked for."""
    settings = plan.settings
    network = {
        "subnets": list(settings.subnets),
        "assignPublicIp": "ENABLED" if settings.public_ip else "DISABLED",
        **({"securityGroups": list(settings.security_groups)} if settings.security_groups else {}),
    }
    environment = [{"name": "MULTINODE_LAUNCH", "value": told.to_json()}]
    tags = {
        NAME_TAG: settings.name,
        WORKER_TAG: launch.worker_id,
        EXECUTION_TAG: launch.execution_id,
    }
    return {
        "cluster": settings.cluster,
        "taskDefinition": definition,
        "count": 1,
        "clientToken": launch.worker_id,
        "startedBy": started_by(settings.name),
        **(_SPOT if settings.spot else {"launchType": "FARGATE"}),
        "networkConfiguration": {"awsvpcConfiguration": network},
        "overrides": {"containerOverrides": [{"name": CONTAINER, "environment": environment}]},
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }


def started_by(name: str) -> str:
    """By which ECS lists the tasks of an installation."""
    return f"multinode-{name}"


# --- telling it apart ------------------------------------------------------------------------------------


def tags_of(task: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a task, as DescribeTasks has them."""
    return {item["key"]: item.get("value", "") for item in task.get("tags", ())}


def task_id_of(arn: str) -> str:
    """The last part of a task's ARN."""
    return arn.rpartition("/")[2]


def stream_of(plan: TaskPlan, task_id: str) -> str:
    """The log stream that awslogs makes for a task."""
    return f"{plan.settings.name}/{CONTAINER}/{task_id}"


# --- how it ended ----------------------------------------------------------------------------------------


def has_ended(task: Mapping[str, Any]) -> bool:
    """Whether no process of it is left, and how it ended can be said.

    The container's end is enough: what Fargate does until the task itself is STOPPED takes half a minute, and uses nothing of it.
    """
    if task.get("lastStatus") == _STOPPED:
        return True
    container = _container(task)
    if container.get("lastStatus") != _STOPPED or "exitCode" not in container:
        return False
    return bool(container["exitCode"] != 137 or container.get("reason"))


def end_of(worker_id: str, task: Mapping[str, Any], said: str, *, was_stopped: bool) -> WorkerEnd:
    """How a task that has ended reads as a worker's end; ``was_stopped``: we have asked for it."""
    container = _container(task)
    code = str(task.get("stopCode", ""))
    if "exitCode" not in container:
        return WorkerEnd(worker_id, detail=_why_it_never_ran(task, was_stopped=was_stopped))
    end = read_exit(
        worker_id,
        int(container["exitCode"]),
        is_out_of_memory=str(container.get("reason", "")).startswith(_OUT_OF_MEMORY),
        memory_mib=int(task.get("memory", 0)),
        said=said,
    )
    why = ""
    if code in ("SpotInterruption", "TerminationNotice"):
        why = "Fargate Spot took its capacity back"
    elif code == "UserInitiated" and not was_stopped:
        why = f"somebody stopped its task: {task.get('stoppedReason', '')}"
    if not why or (end.exit_code == 0 and not said):
        return end
    detail = ": ".join(filter(None, (why, end.detail)))
    return WorkerEnd(worker_id, detail, end.exit_code, end.signal, end.out_of_memory)


def billed_s(task: Mapping[str, Any], now: float) -> float | None:
    """For how many seconds AWS is paid for a task that has ended: from the pull of its image until it is STOPPED.

    0 for one that never pulled; None where that is not told of one that ran. Where its container alone has ended by ``now``, what
    Fargate usually takes until then is added.
    """
    pulled, stopped = task.get("pullStartedAt"), task.get("stoppedAt")
    if pulled is None:
        return None if "exitCode" in _container(task) else 0.0
    until = now + STOPPED_AFTER_S if stopped is None else stopped.timestamp()
    return max(0.0, float(until - pulled.timestamp()))


def _container(task: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's; empty where ECS tells of none, as of tasks that came to nothing early."""
    found: dict[str, Any] = next(
        (item for item in task.get("containers", ()) if item.get("name") == CONTAINER), {}
    )
    return found


def _why_it_never_ran(task: Mapping[str, Any], *, was_stopped: bool) -> str:
    if was_stopped:
        return "it was stopped before its container ran"
    reasons = (task.get("stoppedReason", ""), _container(task).get("reason", ""))
    said = ": ".join(filter(None, map(str, reasons)))
    if task.get("stopCode") in ("SpotInterruption", "TerminationNotice"):
        return f"Fargate Spot took its capacity back before it ran ({said})"
    return explain(said) if said else "its task ended before its container ran"


def explain(said: str) -> str:
    """What AWS's reason for not running a task means, with AWS's own words after it; it begins with `NO_CAPACITY` where that is
    the reason."""
    words = said.strip().rstrip(".")
    for pattern, meaning in _FAILURES:
        if re.search(pattern, words, re.IGNORECASE | re.DOTALL):
            is_full = (pattern, meaning) in _FAILURES[:FULL]
            return f"{NO_CAPACITY if is_full else ''}{meaning} (AWS: {words:.500})"
    return f"AWS did not run its task: {words:.500}"


def explain_failure(failure: Mapping[str, Any]) -> str:
    """The same, of an entry of RunTask's ``failures``."""
    parts = (failure.get("reason", ""), failure.get("detail", ""))
    return explain(": ".join(filter(None, map(str, parts))) or "it does not say why")


def waits_for(task: Mapping[str, Any]) -> str:
    """What a task that does not run yet waits for; empty where that has no word of its own."""
    return PULLING if task.get("lastStatus") == "PENDING" else ""
