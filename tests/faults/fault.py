"""Where the control plane is to be killed: by itself, at a commit of its store. Also what runs in its process.

Nothing of this is in the product: the hooks are put around its functions in the server's process, before it comes up.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

import sqlalchemy as sa

from multinode_control_plane import leadership, server, store
from multinode_control_plane.service import (
    admission,
    deployments,
    executions,
    invocations,
    rows,
    sealing,
)

USE_CASES: dict[str, tuple[Any, str]] = {
    "start": (invocations, "start_all"),
    "worker accepted": (executions, "worker_accepted"),
    "worker exchanges its code": (executions, "exchange"),
    "values": (executions, "store_values"),
    "worker gone": (executions, "worker_gone"),
    "worker is to be stopped": (admission, "StopWorker"),
    "version registered": (deployments, "register"),
    "project is to be deleted": (deployments, "delete"),
    "project removed": (invocations, "RemoveLogs"),
    "next key is in the ring": (sealing, "prepare"),
    "next key is named": (sealing, "begin"),
    "values are encrypted anew": (sealing, "go_on"),
    "old keys are out of the ring": (sealing, "end"),
}
"""Events that are no change of an invocation's status, and the functions that make them."""


@dataclass(frozen=True)
class Fault:
    """SIGKILL at a commit that holds ``event``: right before it is made, or right after, before any answer or effect."""

    event: str
    when: Literal["before", "after"]
    number: int = 1
    """Which of these commits."""

    def install(self) -> None:
        """Puts the hooks into this process."""
        held: set[str] = set()
        commits = count(1)

        def kill() -> None:
            if self.event in held and next(commits) == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        for name, (module, function) in USE_CASES.items():
            _note(module, function, lambda *_, name=name, **__: held.add(name))
        _note(rows, "move_all", lambda _tx, changes: held.update(map(event_of, changes)))
        _note(
            rows,
            "move_waiting",
            lambda _tx, found, status, **columns: held.update(
                event_of((_Waiting(row), status, columns)) for row in found
            ),
        )
        _note(store.Store, "_run", lambda *_: held.clear())
        if self.when == "after":
            _note(store.Store, "_answer", lambda *_: kill())
        else:
            sa.event.listen(sa.Engine, "commit", lambda _: kill())


@dataclass(frozen=True)
class _Waiting:
    """A row of which less was read: it is PENDING."""

    row: Any
    status: str = "PENDING"

    @property
    def waiting(self) -> str | None:
        return self.row.waiting  # type: ignore[no-any-return]


def event_of(change: tuple[Any, str, Mapping[str, Any]]) -> str:
    """``RUNNING > FAILED``; of one that stays PENDING, also what it waits for from now on."""
    row, status, columns = change
    event = f"{row.status} > {status}"
    if status == row.status == "PENDING":
        event += f", {columns.get('waiting', row.waiting)}"
    return event


def _note(owner: Any, name: str, hook: Callable[..., object]) -> None:
    original = getattr(owner, name)

    def noted(*args: Any, **options: Any) -> Any:
        hook(*args, **options)
        return original(*args, **options)

    setattr(owner, name, noted)


class Hook(Protocol):
    """What is put into a server's process before it comes up."""

    def install(self) -> None:
        """Puts it into this process."""


def run_server(
    arguments: list[str],
    log: str,
    ready: Connection,
    hooks: Sequence[Hook],
    variables: Mapping[str, str],
) -> None:
    """The life of a server's process, with these variables of its environment."""
    os.setsid()
    os.environ.update(variables)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    # Where a database is shared: nobody else uses this one, and who starts after a kill would wait six seconds.
    leadership.BEAT_S, leadership.LOOK_S, leadership.PATIENCE_S = 0.1, 0.05, 0.6
    for hook in hooks:
        hook.install()
    sys.exit(server.main([*arguments, f"--ready-fd={os.dup(ready.fileno())}"]))
