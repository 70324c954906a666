"""The task definitions of an installation: one for each environment and size, registered when it is first needed. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Any

from multinode.wire import WorkerSize
from multinode_control_plane.runners.ecs_api import Tasks
from multinode_control_plane.runners.ecs_tasks import TaskPlan, make_definition
from multinode_control_plane.runners.storage import Stored

DEFINITION = "definition"


class Definitions:
    """What AWS does not do is raised as AwsFailed."""

    def __init__(self, tasks: Tasks, plan: Callable[[], TaskPlan]) -> None:
        self._tasks = tasks
        self._plan = plan
        self._known: dict[str, str] = {}
        self._used_at: dict[str, float] = {}
        self._making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def arn(self, image: str, size: WorkerSize) -> str:
        """Of the one for workers of this image and size."""
        arguments = make_definition(self._plan(), image, size)
        family = arguments["family"]
        async with self._making[family]:
            if family not in self._known:
                self._known[family] = await self._found_or_made(family, arguments)
        self._used_at[family] = time.time()
        return self._known[family]

    async def _found_or_made(self, family: str, arguments: dict[str, Any]) -> str:
        found = await self._tasks.definition(family)
        if found is not None:
            return str(found["taskDefinitionArn"])
        return await self._tasks.define(arguments)

    def forget(self, image: str, size: WorkerSize) -> None:
        """It cannot be used any more: another process has removed it."""
        self._known.pop(make_definition(self._plan(), image, size)["family"], None)

    async def stored(self) -> list[Stored]:
        """All, with when each was last used, as far as this process knows: without one that is needed after all another is made."""
        found = []
        for family in await self._tasks.families():
            used_at = self._used_at.get(family)
            if used_at is None:
                definition = await self._tasks.definition(family) or {}
                used_at = _unix_time(definition.get("registeredAt"))
            found.append(Stored(DEFINITION, family, 0, used_at))
        return found

    async def discard(self, family: str) -> None:
        """Removes one."""
        self._known.pop(family, None)
        await self._tasks.withdraw(family)


def _unix_time(at: datetime | None) -> float:
    """Now where it is not known: then it stays."""
    return at.timestamp() if at else time.time()
