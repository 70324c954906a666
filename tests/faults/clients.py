"""A client that notes what it is told, and the history of all that were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.faults.history import Call, History, Seen, Started, Stored, Told, Yielded
from tests.faults.installation import Installation

from multinode import wire
from multinode.codec import decode
from multinode.errors import (
    InvocationFailedError,
    RemoteInvocationCancelledError,
    RemoteInvocationTimedOutError,
)

PATIENCE_S = 100.0
"""For an end: a worker that lost the control plane asks again within five seconds, and may find it killed again."""
ENDS = {
    InvocationFailedError: wire.FAILED,
    RemoteInvocationCancelledError: wire.CANCELLED,
    RemoteInvocationTimedOutError: wire.TIMED_OUT,
}


class Caller:
    """Calls functions through the SDK, as an application would; ``told`` is what it was told, in order."""

    def __init__(self, installation: Installation) -> None:
        self.told: list[Told] = []
        self.ended: set[str] = set()
        """The invocations of whose end it was told."""
        self._installation = installation

    def start(self, function: str, call: Call, *more: Any, **options: Any) -> str:
        """``options`` are those of ``with_options``."""
        called = self._installation.function(function)
        if options:
            called = called.with_options(**options)
        invocation_id = called.start(call.label, *more)
        self.told.append(Started(call, invocation_id))
        return invocation_id

    def look(self, function: str, invocation_id: str) -> str:
        """Its status now."""
        found = self._installation.function(function).get(invocation_id)
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
            result = self._installation.function(function).await_result(invocation_id, PATIENCE_S)
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
        self._installation.function(function).cancel(invocation_id)


def history(
    installation: Installation, callers: Sequence[Caller], ids: Sequence[str] | None = None
) -> History:
    """All that is known, once every worker is gone; ``ids`` are the invocations to look at, or all."""
    client = installation.client()
    wanted = list(installation.all_invocation_ids()) if ids is None else ids
    stored = {invocation_id: _stored(client, invocation_id) for invocation_id in wanted}
    told = {f"caller {number}": caller.told for number, caller in enumerate(callers)}
    return History(told, stored, installation.effects())


def _stored(client: Any, invocation_id: str) -> Stored:
    path = f"/v1/invocations/{invocation_id}"
    detail = client.call(wire.InvocationDetail, "GET", f"{path}/detail")
    info = detail.invocation
    values = client.call(wire.ValuesAnswer, "GET", f"{path}/values?after=0").values
    return Stored(
        status=info.status,
        result=None if info.result is None else decode(info.result),
        finished_at=info.finished_at,
        terminated=info.terminated,
        values=tuple((value.number, decode(value.value)) for value in values),
        attempts=tuple(item.attempt for item in detail.executions if item.started_at is not None),
    )
