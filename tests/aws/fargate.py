"""ECS on Fargate as AWS documents it: what it refuses, how a task is told of, and when it is not seen.

Task definitions and clusters are moto's. A task is a container of the Docker engine (``task_life``).
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable

from tests.aws.calls import ACCOUNT, REGION, AwsError, Call, Moto

SIZES = {
    256: (512, 1024, 2048),
    512: range(1024, 4097, 1024),
    1024: range(2048, 8193, 1024),
    2048: range(4096, 16385, 1024),
    4096: range(8192, 30721, 1024),
    8192: range(16384, 61441, 4096),
    16384: range(32768, 122881, 8192),
}
MAX_OVERRIDES = 8192
_ACTS = {
    "RegisterTaskDefinition": "register",
    "RunTask": "run",
    "DescribeTasks": "describe",
    "ListTasks": "list",
    "StopTask": "stop",
    "DescribeTaskDefinition": "definition",
    "ListTaskDefinitionFamilies": "families",
}


@dataclass(eq=False)
class Task:
    """A task. ``status`` is its lastStatus; ``container`` what is told of its one container, empty where it has none."""

    asked: dict[str, Any]
    definition: dict[str, Any]
    cluster: str
    orders: dict[str, Any]
    """What a test wants of it: see ``StandIn.next_task``."""
    task_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: str = "PROVISIONING"
    desired: str = "RUNNING"
    created_at: float = field(default_factory=time.time)
    times: dict[str, float] = field(default_factory=dict)
    stop_code: str = ""
    stopped_reason: str = ""
    container: dict[str, Any] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def arn(self) -> str:
        return f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/{self.cluster}/{self.task_id}"

    @property
    def tags(self) -> list[dict[str, str]]:
        return self.asked.get("tags", [])

    def stop(self, code: str, reason: str) -> None:
        """Asks it to end; the first to do so says why."""
        if self.desired != "STOPPED":
            self.desired, self.stop_code, self.stopped_reason = "STOPPED", code, reason
            self.times["stoppingAt"] = time.time()
            self.stopping.set()

    def told(self, *, has_tags: bool) -> dict[str, Any]:
        """As DescribeTasks has it."""
        container = self.definition["containerDefinitions"][0]
        shown = {
            "containerArn": f"{self.arn}/1".replace(":task/", ":container/"),
            "taskArn": self.arn,
            "name": container["name"],
            "image": container["image"],
            "lastStatus": "PENDING",
            "networkInterfaces": [],
            **self.container,
        }
        found = {
            "taskArn": self.arn,
            "clusterArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{self.cluster}",
            "taskDefinitionArn": self.definition["taskDefinitionArn"],
            "lastStatus": self.status,
            "desiredStatus": self.desired,
            "createdAt": self.created_at,
            "cpu": self.definition["cpu"],
            "memory": self.definition["memory"],
            "startedBy": self.asked.get("startedBy", ""),
            "launchType": "FARGATE",
            "platformVersion": "1.4.0",
            "overrides": self.asked.get("overrides", {}),
            "containers": [] if self.orders.get("no_containers") else [shown],
            "tags": self.tags if has_tags else [],
            **self.times,
        }
        if self.stop_code:
            found["stopCode"] = self.stop_code
        if self.stopped_reason:
            found["stoppedReason"] = self.stopped_reason
        return found


class Fargate:
    """``live`` is called in a thread of each task's own, and gives it its life."""

    def __init__(self, moto: Moto, live: Callable[[Task], None]) -> None:
        self._moto = moto
        self._live = live
        self._tasks: dict[str, Task] = {}
        self._by_token: dict[str, tuple[dict[str, Any], Task]] = {}
        self._lock = threading.Lock()
        self.orders: list[dict[str, Any]] = []
        """For the next tasks, one each."""
        self.hidden_s = 0.0
        """How long a new task is not seen by those who ask."""

    def handle(self, call: Call) -> dict[str, Any]:
        """Answers a call of ECS's. Raises AwsError."""
        act = _ACTS.get(call.operation)
        if act is None:
            return self._moto.ask("ecs", call.operation, call.body)
        return getattr(self, f"_{act}")(call.body)

    def forget(self) -> None:
        """Those that have stopped are not known any more, as after an hour."""
        with self._lock:
            for task_id in [each.task_id for each in self.tasks() if each.status == "STOPPED"]:
                del self._tasks[task_id]

    def tasks(self) -> list[Task]:
        return list(self._tasks.values())

    # --- what is refused -------------------------------------------------------------------------------

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        if "FARGATE" in body.get("requiresCompatibilities", ()):
            _check_definition(body)
        asked = {**body, "containerDefinitions": [dict(c) for c in body["containerDefinitions"]]}
        for container in asked["containerDefinitions"]:
            # moto adds these up, and fails where there is none.
            container.setdefault("memoryReservation", 6)
        return self._moto.ask("ecs", "RegisterTaskDefinition", asked)

    def _definition(self, body: dict[str, Any]) -> dict[str, Any]:
        """A family alone is its newest that is active, which moto does not mind."""
        name = body["taskDefinition"]
        if ":" not in name:
            active = self._active(name)
            if not active:
                raise AwsError("ClientException", "Unable to describe task definition.")
            body = {**body, "taskDefinition": active[-1]}
        return self._moto.ask("ecs", "DescribeTaskDefinition", body)

    def _families(self, body: dict[str, Any]) -> dict[str, Any]:
        found = self._moto.ask("ecs", "ListTaskDefinitionFamilies", body)
        if body.get("status") == "ACTIVE":
            found["families"] = [each for each in found["families"] if self._active(each)]
        return found

    def _active(self, family: str) -> list[str]:
        asked = {"familyPrefix": family, "status": "ACTIVE"}
        found = self._moto.ask("ecs", "ListTaskDefinitions", asked)["taskDefinitionArns"]
        return [arn for arn in found if arn.rpartition("/")[2].partition(":")[0] == family]

    def _cluster(self, body: dict[str, Any]) -> str:
        name = body.get("cluster", "default").rpartition("/")[2]
        found = self._moto.ask("ecs", "DescribeClusters", {"clusters": [name]})["clusters"]
        if not found or found[0].get("status") == "INACTIVE":
            raise AwsError("ClusterNotFoundException", "Cluster not found.")
        return name

    def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        cluster = self._cluster(body)
        token = body.get("clientToken")
        with self._lock:
            known = self._by_token.get(token)
        if known is not None:
            if known[0] != body:
                raise AwsError(
                    "ConflictException",
                    "The RunTask request could not be processed due to conflicts.",
                )
            return {"tasks": [known[1].told(has_tags=False)], "failures": []}
        asked = {"taskDefinition": body["taskDefinition"]}
        definition = self._moto.ask("ecs", "DescribeTaskDefinition", asked)["taskDefinition"]
        _check_run(body, definition)
        with self._lock:
            task = Task(body, definition, cluster, self.orders.pop(0) if self.orders else {})
            self._tasks[task.task_id] = task
            if token:
                self._by_token[token] = (body, task)
        threading.Thread(target=self._live, args=(task,), daemon=True).start()
        return {"tasks": [task.told(has_tags=False)], "failures": []}

    # --- what is seen ----------------------------------------------------------------------------------

    def _seen(self, body: dict[str, Any]) -> dict[str, Task]:
        cluster = self._cluster(body)
        before = time.time() - self.hidden_s
        return {
            task.task_id: task
            for task in self.tasks()
            if task.cluster == cluster and task.created_at <= before
        }

    def _describe(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body.get("tasks", [])
        if len(asked) > 100:
            raise AwsError("InvalidParameterException", "Tasks cannot have more than 100 entries.")
        if not asked:
            raise AwsError("InvalidParameterException", "Tasks cannot be empty.")
        seen, tasks, failures = self._seen(body), [], []
        for name in asked:
            task = seen.get(name.rpartition("/")[2])
            if task is None:
                failures.append({"arn": name, "reason": "MISSING"})
            else:
                tasks.append(task.told(has_tags="TAGS" in body.get("include", ())))
        return {"tasks": tasks, "failures": failures}

    def _list(self, body: dict[str, Any]) -> dict[str, Any]:
        started_by, status = body.get("startedBy"), body.get("desiredStatus")
        if started_by and (status or body.get("family")):
            raise AwsError("InvalidParameterException", "startedBy must be the only filter.")
        found = [
            task.arn
            for task in self._seen(body).values()
            if task.desired == (status or "RUNNING")
            and started_by in (None, task.asked.get("startedBy"))
        ]
        begin = int(body.get("nextToken") or 0)
        end = begin + min(int(body.get("maxResults") or 100), 100)
        more = {"nextToken": str(end)} if end < len(found) else {}
        return {"taskArns": found[begin:end], **more}

    def _stop(self, body: dict[str, Any]) -> dict[str, Any]:
        task = self._seen(body).get(body["task"].rpartition("/")[2])
        if task is None:
            raise AwsError("InvalidParameterException", "The referenced task was not found.")
        task.stop("UserInitiated", body.get("reason") or "Task stopped by user")
        return {"task": task.told(has_tags=False)}


def _check_definition(body: dict[str, Any]) -> None:
    cpu, memory = int(body.get("cpu") or 0), int(body.get("memory") or 0)
    if cpu not in SIZES:
        raise AwsError("ClientException", "Invalid 'cpu' setting for task.")
    if memory not in SIZES[cpu]:
        raise AwsError("ClientException", "No Fargate configuration exists for given values.")
    if body.get("networkMode") != "awsvpc":
        raise AwsError("ClientException", "Fargate only supports network mode ‘awsvpc’.")
    for container in body["containerDefinitions"]:
        if not 2 <= container.get("stopTimeout", 30) <= 120:
            raise AwsError("ClientException", "The stopTimeout must be between 2 and 120 seconds.")
        if container.get("secrets") and not body.get("executionRoleArn"):
            raise AwsError(
                "ClientException",
                "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'.",
            )
        for option in ("dockerSecurityOptions", "extraHosts", "privileged"):
            if container.get(option):
                raise AwsError("ClientException", f"Fargate does not support {option}.")


def _check_run(body: dict[str, Any], definition: dict[str, Any]) -> None:
    if definition["status"] != "ACTIVE":
        raise AwsError("InvalidParameterException", "TaskDefinition is inactive")
    overrides = body.get("overrides") or {}
    if len(json.dumps(overrides, separators=(",", ":"))) > MAX_OVERRIDES:
        raise AwsError(
            "InvalidParameterException", "Container Overrides length must be at most 8192"
        )
    names = {container["name"] for container in definition["containerDefinitions"]}
    for override in overrides.get("containerOverrides", ()):
        if override["name"] not in names:
            raise AwsError(
                "InvalidParameterException",
                f"Override for container named {override['name']} is not a container in the TaskDefinition.",
            )
    if not (body.get("networkConfiguration") or {}).get("awsvpcConfiguration"):
        raise AwsError(
            "InvalidParameterException",
            "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
        )
    if body.get("launchType") and body.get("capacityProviderStrategy"):
        raise AwsError(
            "InvalidParameterException", "Specify either a launchType or capacityProviderStrategy."
        )
    if len(body.get("clientToken", "")) > 64 or len(body.get("startedBy", "")) > 128:
        raise AwsError("InvalidParameterException", "clientToken or startedBy is too long.")
