"""Mistakes that are put into the product, to see that the checker finds what comes of them. Each is a hook of a server's process.

Nothing of this is in the product: it is put around its functions in the server's process, before it comes up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from multinode_control_plane import model
from multinode_control_plane.service import executions, statements
from multinode_control_plane.service.executions import WorkerIdentity
from multinode_control_plane.service.hashing import hash_secret


class _Changed:
    """A row, with another state."""

    def __init__(self, row: Any, state: str) -> None:
        self._row, self.state = row, state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


def _see_execution_as(change: Callable[[Any], Any]) -> None:
    """Has what workers send find its execution so changed."""
    find = executions._own_rows

    def found(*arguments: Any) -> tuple[Any, Any]:
        execution, row = find(*arguments)
        return change(execution), row

    executions._own_rows = found


def _know_gone_workers() -> None:
    """The token of a worker that is gone opens as it did."""

    def identity(connection: sa.Connection, token: str) -> WorkerIdentity | None:
        worker = statements.first(connection, model.workers, token_hash=hash_secret(token))
        return worker and executions.identity_of(worker)

    executions.identity = identity


def _let_every_status_follow() -> None:
    every = frozenset(model.TRANSITIONS)
    model.TRANSITIONS.update(dict.fromkeys(model.TRANSITIONS, every))


class SkippedCompare:
    """A claim is written without a look at whether the execution still waits for one."""

    def install(self) -> None:
        _know_gone_workers()
        _see_execution_as(
            lambda row: _Changed(row, model.STARTING) if row.started_at is None else row
        )


class LostLease:
    """A worker that was given up may write as before."""

    def install(self) -> None:
        _know_gone_workers()
        _let_every_status_follow()
        _see_execution_as(
            lambda row: _Changed(row, model.STARTED) if row.outcome == "lost" else row
        )


class RepeatedFinish:
    """An end that comes twice is written twice."""

    def install(self) -> None:
        _let_every_status_follow()
        _see_execution_as(
            lambda row: _Changed(row, model.STARTED) if row.state == model.ENDED else row
        )
