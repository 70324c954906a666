"""A client that notes what it is told, and the history of all that were."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, TypeVar

import sqlalchemy as sa
from tests.faults.history import (
    Call,
    History,
    Queue,
    Seen,
    Started,
    Stored,
    Terms,
    Told,
    Yielded,
)
from tests.faults.installation import PROJECT, Installation

from multinode import wire
from multinode.client import Client, path_of
from multinode.codec import decode
from multinode.errors import (
    InvocationFailedError,
    RemoteInvocationCancelledError,
    RemoteInvocationTimedOutError,
    StorageFull,
)
from multinode_control_plane import model
from multinode_control_plane.databases import open_database

T = TypeVar("T")
PATIENCE_S = 100.0
"""For an end: a worker that lost the control plane asks again within five seconds, and may find it killed again."""
ENDS = {
    InvocationFailedError: wire.FAILED,
    RemoteInvocationCancelledError: wire.CANCELLED,
    RemoteInvocationTimedOutError: wire.TIMED_OUT,
}


class Caller:
    """Calls functions through the SDK, as an application would; ``told`` is what it was told, in order.

    ``is_patient``: it asks again where the control plane's disk is full.
    """

    def __init__(self, installation: Installation, *, is_patient: bool = False) -> None:
        self.told: list[Told] = []
        self.ended: set[str] = set()
        """The invocations of whose end it was told."""
        self._installation = installation
        self._is_patient = is_patient

    def _ask(self, ask: Callable[..., T], *arguments: Any) -> T:
        given_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask(*arguments)
            except StorageFull:
                if not self._is_patient or time.monotonic() > given_up_at:
                    raise
            time.sleep(0.1)

    def start(self, function: str, call: Call, *more: Any, **options: Any) -> str:
        """``options`` are those of ``with_options``."""
        called = self._installation.function(function)
        if options:
            called = called.with_options(**options)
        invocation_id = self._ask(called.start, call.label, *more)
        self.told.append(Started(call, invocation_id, function))
        return invocation_id

    def look(self, function: str, invocation_id: str) -> str:
        """Its status now."""
        found = self._ask(self._installation.function(function).get, invocation_id)
        finished_at = (
            None
            if found.finished_at is None
            else found.finished_at.isoformat(timespec="milliseconds")
        )
        status = str(found.status)
        self.told.append(Seen(invocation_id, status, found.result, finished_at))
        return status

    def wait(self, function: str, invocation_id: str) -> str:
        """Its status at the end."""
        result = None
        try:
            called = self._installation.function(function)
            result = self._ask(called.await_result, invocation_id, PATIENCE_S)
            status = wire.SUCCEEDED
        except tuple(ENDS) as error:
            status = ENDS[type(error)]
        self.ended.add(invocation_id)
        self.told.append(Seen(invocation_id, status, result))
        return status

    def follow(self, function: str, invocation_id: str, most: int = 1_000_000) -> None:
        """Reads its values to the end, or the first ``most``."""
        values = []
        progress = self._installation.function(function).numbered_progress(invocation_id)
        for numbered in progress:
            values.append(numbered)
            if len(values) >= most:
                break
        self.told.append(Yielded(invocation_id, tuple(values), len(values) < most))

    def cancel(self, function: str, invocation_id: str) -> None:
        """Asks for its cancellation."""
        self._ask(self._installation.function(function).cancel, invocation_id)


def history(
    installation: Installation,
    callers: Sequence[Caller],
    ids: Sequence[str] | None = None,
    *,
    ended_workers: int | None = None,
) -> History:
    """All that is known, once every worker is gone; ``ids`` are the invocations to look at, or all.

    ``ended_workers``: how many workers the faults may have ended; None: any number.
    """
    with closing(installation.client()) as client:
        wanted = list(installation.all_invocation_ids()) if ids is None else ids
        stored = {invocation_id: _stored(client, invocation_id) for invocation_id in wanted}
        terms = _terms(client)
    queues, living = _counted(installation)
    return History(
        told={f"caller {number}": caller.told for number, caller in enumerate(callers)},
        stored=stored,
        effects=installation.effects(),
        terms=terms,
        cpu=installation.cpu,
        queues=queues,
        living_workers=living,
        left=installation.left(),
        ended_workers=ended_workers,
    )


def _stored(client: Client, invocation_id: str) -> Stored:
    path = f"/v1/invocations/{invocation_id}"
    detail = client.call(wire.InvocationDetail, "GET", f"{path}/detail")
    info = detail.invocation
    values = client.call(wire.ValuesAnswer, "GET", f"{path}/values?after=0").values
    started = [item for item in detail.executions if item.started_at is not None]
    return Stored(
        status=info.status,
        result=None if info.result is None else decode(info.result),
        finished_at=info.finished_at,
        terminated=info.terminated,
        values=tuple((value.number, decode(value.value)) for value in values),
        attempts=tuple(item.attempt for item in started),
        losses=tuple(_how_lost(item) for item in started if _is_lost(item)),
    )


def _is_lost(item: wire.ExecutionInfo) -> bool:
    """Not by its code: the functions of `project` kill nobody."""
    return item.outcome == "lost" or item.signal == signal.SIGKILL


def _how_lost(item: wire.ExecutionInfo) -> str:
    return f"{item.execution_id}, {item.error.message if item.error else item.outcome}"


def _terms(client: Client) -> dict[str, Terms]:
    path = path_of("projects", PROJECT, "versions", "latest")
    found = client.call(wire.VersionInfo, "GET", path).functions
    return {
        each.name: Terms(
            each.settings.max_concurrency, each.settings.max_retries, each.settings.cpu
        )
        for each in found
    }


def _counted(installation: Installation) -> tuple[dict[str, Queue], list[str]]:
    """What the store's own tables say: no client is told of them."""
    engine = open_database(installation.database_url).engine
    queues, workers = model.queues, model.workers
    try:
        with engine.connect() as connection:
            counted = connection.execute(sa.select(queues)).all()
            living = connection.execute(
                sa.select(workers.c.worker_id).where(workers.c.gone_at.is_(None))
            )
            return {row.function: Queue(row.workers, row.ready) for row in counted}, list(
                living.scalars()
            )
    finally:
        engine.dispose()
