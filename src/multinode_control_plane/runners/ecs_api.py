"""ECS as the ``ecs`` runner asks it, kept below the rates that AWS sets for an account. Belongs to one event loop.

The rates are half of AWS's (https://docs.aws.amazon.com/AmazonECS/latest/APIReference/request-throttling.html, 2026-11-24): others in the
account ask, too, and where it throttles all the same, boto3 waits and asks again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from multinode.errors import AwsFailed
from multinode_control_plane.aws import Service
from multinode_control_plane.runners.ecs_tasks import family_prefix, started_by
from multinode_control_plane.runners.token_bucket import TokenBucket

AT_ONCE = 100
"""Tasks that one DescribeTasks may ask for."""
THREADS = 16


class Account:
    """The services of AWS that the runner uses, each with its rates."""

    def __init__(self) -> None:
        self.ecs = Service("ecs")
        self.logs = Service("logs")
        # Once: whether a call that was lost has done something is the runner's to find out.
        self._once = Service("ecs", attempts=1)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="aws")
        self._buckets = {
            "run": TokenBucket(50, 20),
            "look": TokenBucket(50, 10),
            "define": TokenBucket(10, 0.5),
            "log": TokenBucket(20, 12),
            "stream": TokenBucket(25, 12),
        }

    async def call(
        self, rate: str, service: Service, operation: str, what: str, **arguments: Any
    ) -> dict[str, Any]:
        """See ``Service.call``; when its turn has come. ``rate`` is the name of a bucket."""
        await asyncio.sleep(self._buckets[rate].take(time.monotonic()))
        loop = asyncio.get_running_loop()
        act = partial(service.call, operation, what, **arguments)
        return await loop.run_in_executor(self._pool, act)

    async def call_once(self, operation: str, what: str, **arguments: Any) -> dict[str, Any]:
        """The same, of ECS, and not again where it fails."""
        return await self.call("run", self._once, operation, what, **arguments)

    async def region(self) -> str:
        """Raises AwsFailed where none is set."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: self.ecs.region)

    def close(self) -> None:
        """Ends all connections. Blocks."""
        self._pool.shutdown(cancel_futures=True)
        for service in (self.ecs, self.logs, self._once):
            service.close()


class Tasks:
    """The tasks and task definitions of one installation in one cluster. What AWS does not do is raised as AwsFailed."""

    def __init__(self, account: Account, cluster: str, name: str) -> None:
        self._account = account
        self._cluster = cluster
        self._name = name

    # --- tasks -----------------------------------------------------------------------------------------

    async def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer of RunTask, asked for once."""
        return await self._account.call_once("run_task", "No task can be run", **arguments)

    async def stop(self, task: str, reason: str) -> None:
        """Sends it SIGTERM, and SIGKILL when its stop timeout is over; one that is gone is no error."""
        account, what = self._account, "A task cannot be stopped"
        try:
            await account.call(
                "run",
                account.ecs,
                "stop_task",
                what,
                cluster=self._cluster,
                task=task,
                reason=reason,
            )
        except AwsFailed as error:
            if "was not found" not in error.message:
                raise

    async def describe(self, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What ECS tells of each, with its tags, by ARN; those that it does not know (yet, or any more) are not there."""
        found: dict[str, dict[str, Any]] = {}
        for begin in range(0, len(tasks), AT_ONCE):
            answer = await self._account.call(
                "look",
                self._account.ecs,
                "describe_tasks",
                "Tasks cannot be looked at",
                cluster=self._cluster,
                tasks=list(tasks[begin : begin + AT_ONCE]),
                include=["TAGS"],
            )
            found.update({task["taskArn"]: task for task in answer["tasks"]})
        return found

    async def living(self) -> list[str]:
        """The ARNs of this installation's tasks that nobody has asked to end, and that have not ended."""
        return await self._list(startedBy=started_by(self._name))

    async def stopping(self) -> list[str]:
        """The ARNs of all tasks in the cluster that are to end, or have ended within the last hour: ECS tells no finer."""
        return await self._list(desiredStatus="STOPPED")

    async def _list(self, **which: str) -> list[str]:
        pages = await self._pages(
            "list_tasks", "Tasks cannot be listed", cluster=self._cluster, **which
        )
        return [arn for page in pages for arn in page["taskArns"]]

    async def _pages(self, operation: str, what: str, **arguments: Any) -> list[dict[str, Any]]:
        pages: list[dict[str, Any]] = []
        token: dict[str, str] = {}
        while True:
            answer = await self._account.call(
                "look", self._account.ecs, operation, what, **arguments, **token
            )
            pages.append(answer)
            if not answer.get("nextToken"):
                return pages
            token = {"nextToken": answer["nextToken"]}

    # --- definitions -----------------------------------------------------------------------------------

    async def definition(self, family: str) -> dict[str, Any] | None:
        """The newest active one of a family; None where there is none."""
        account = self._account
        try:
            answer = await account.call(
                "look",
                account.ecs,
                "describe_task_definition",
                "A task definition cannot be looked at",
                taskDefinition=family,
            )
        except AwsFailed as error:
            if "Unable to describe task definition" in error.message:
                return None
            raise
        found: dict[str, Any] = answer["taskDefinition"]
        return found if found.get("status") == "ACTIVE" else None

    async def define(self, arguments: dict[str, Any]) -> str:
        """Registers a definition; returns its ARN."""
        account, what = self._account, "A task definition cannot be registered"
        answer = await account.call(
            "define", account.ecs, "register_task_definition", what, **arguments
        )
        return str(answer["taskDefinition"]["taskDefinitionArn"])

    async def families(self) -> list[str]:
        """Of this installation, with an active definition."""
        pages = await self._pages(
            "list_task_definition_families",
            "Task definitions cannot be listed",
            familyPrefix=family_prefix(self._name),
            status="ACTIVE",
        )
        return [family for page in pages for family in page["families"]]

    async def withdraw(self, family: str) -> None:
        """Deregisters all definitions of a family; tasks that run are not touched."""
        pages = await self._pages(
            "list_task_definitions",
            "Task definitions cannot be listed",
            familyPrefix=family,
            status="ACTIVE",
        )
        await self._deregister(arn for page in pages for arn in page["taskDefinitionArns"])

    async def _deregister(self, arns: Iterable[str]) -> None:
        account, what = self._account, "A task definition cannot be deregistered"
        for arn in arns:
            await account.call(
                "define", account.ecs, "deregister_task_definition", what, taskDefinition=arn
            )

    # --- doctor ----------------------------------------------------------------------------------------

    async def cluster_state(self) -> str:
        """``ACTIVE``, another word of ECS's, or empty where there is no such cluster."""
        account, what = self._account, f"The ECS cluster {self._cluster} cannot be looked at"
        answer = await account.call(
            "look", account.ecs, "describe_clusters", what, clusters=[self._cluster]
        )
        return next((str(each["status"]) for each in answer["clusters"]), "")
