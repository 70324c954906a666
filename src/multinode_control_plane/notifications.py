"""What a commit tells the processes that share the database: whom it concerns, and what it leaves to the leader.

Sent with PostgreSQL's NOTIFY in the very transaction, so that nobody hears of what was not committed. What is lost with a
connection is made good: whoever listens again wakes all who wait, and a leader that begins looks for what was left to do.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from multinode_control_plane.service import actions
from multinode_control_plane.store import Store, Transaction

log = logging.getLogger(__name__)

CHANNEL = "multinode"
MAX_CHARACTERS = 7000
"""PostgreSQL takes payloads below 8,000 bytes; ours are ASCII."""
LOOK_S = 1.0
"""How often the thread looks whether it is to end."""
AGAIN_S = 0.5
KEYS = "keys"
"""The event of API keys that were made or revoked."""
_ACTIONS: dict[str, Callable[..., object]] = {
    cls.__name__: cls
    for cls in (actions.StopWorker, actions.SetTimer, actions.ForgetWorker, actions.RemoveLogs)
}
"""All that the leader can do for another. Not StartWorker, which holds a secret: its intent is stored, and a new leader finds it."""
IDS = 100
"""The most that one payload names."""


@dataclass(frozen=True)
class Notice:
    """What one commit, or a part of it, tells. ``sender`` is the store's id; ``woken``: the scheduler is to tick."""

    sender: str
    events: frozenset[str] = frozenset()
    effects: tuple[object, ...] = ()
    woken: bool = False


def encoded(notice: Notice) -> Iterator[str]:
    """Payloads, of which none is too long."""
    words: list[Any] = [["", event] for event in sorted(notice.events)]
    words += [[type(effect).__name__, asdict(effect)] for effect in _told(notice.effects)]
    part: list[Any] = [["woken", True]] if notice.woken else []
    length = 0
    for word in words:
        length += len(json.dumps(word)) + 2
        if length > MAX_CHARACTERS:
            yield json.dumps([notice.sender, part])
            part, length = [], len(json.dumps(word)) + 2
        part.append(word)
    if part:
        yield json.dumps([notice.sender, part])


def _told(effects: Iterable[object]) -> Iterator[Any]:
    """Those that concern the leader; one that is long in several."""
    for effect in effects:
        if isinstance(effect, actions.RemoveLogs):
            ids = effect.execution_ids
            for begin in range(0, len(ids), IDS):
                yield actions.RemoveLogs(ids[begin : begin + IDS])
        elif type(effect).__name__ in _ACTIONS:
            yield effect


def decoded(payload: str) -> Notice:
    """The notice of a payload."""
    sender, words = json.loads(payload)
    effects = [
        _ACTIONS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        for name, fields in words
        if name in _ACTIONS
    ]
    return Notice(
        sender,
        frozenset(event for name, event in words if name == ""),
        tuple(effects),
        any(name == "woken" for name, _ in words),
    )


class Notifications:
    """This process's part: sends with each commit, and hears the others on a connection of its own.

    ``hear(notice)`` is called on the loop, ``deafened()`` too, whenever something may have been missed. ``leads()`` says
    whether effects and ticks are this process's own business.
    """

    def __init__(
        self,
        store: Store,
        hear: Callable[[Notice], None],
        deafened: Callable[[], None],
        leads: Callable[[], bool],
    ) -> None:
        self._store, self._hear, self._deafened, self._leads = store, hear, deafened, leads
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)

    def open(self) -> None:
        """From now on commits are told, and heard."""
        self._store.announce = self._announce
        self._thread.start()

    def close(self) -> None:
        """Blocks for up to `LOOK_S`, and a second where the database says nothing: then the thread, a daemon, is left."""
        self._ended.set()
        self._thread.join(LOOK_S + 1)

    def _announce(self, connection: sa.Connection, transactions: Sequence[Transaction]) -> None:
        events = frozenset(event for tx in transactions for event in tx.events)
        if self._leads():
            notice = Notice(self._store.id, events)
        else:
            effects = tuple(e for tx in transactions for e in tx.effects)
            notice = Notice(self._store.id, events, effects, any(tx.woken for tx in transactions))
        for payload in encoded(notice):
            connection.exec_driver_sql(f"SELECT pg_notify('{CHANNEL}', %s)", (payload,))

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                with self._store.engine.connect() as connection:
                    self._hear_all(connection)
            except sa.exc.DBAPIError as error:
                log.warning("what the other processes change is not heard: %s", error.orig)
            except Exception:  # the thread's outermost edge
                log.exception("what the other processes change is not heard")
            time.sleep(AGAIN_S)

    def _hear_all(self, connection: sa.Connection) -> None:
        """Until the end, or until the connection is lost, which raises."""
        connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        self._store.database.note_listener(connection, self._store.id)
        self._store.on_loop(self._deafened)
        driver: Any = connection.connection.driver_connection
        while not self._ended.is_set():
            for said in driver.notifies(timeout=LOOK_S, stop_after=1):
                notice = decoded(said.payload)
                if notice.sender != self._store.id:
                    with suppress(RuntimeError):  # the loop has ended
                        self._store.on_loop(partial(self._hear, notice))
