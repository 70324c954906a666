"""The store: one writer, grouped commits, and the waking of those who wait.

Every change of state is a plain function ``job(tx)`` that runs in the writer's transaction. The writer takes all jobs
that wait, runs each in a savepoint (those of a kind in one, where they can be done together), lets the scheduler tick in the same transaction where one asked for it, commits
once, and only then answers, fires events and hands out effects: an answer never precedes its fsync.

Where the connection is lost (`databases` says when), the batch is tried again on a new one; one whose commit may or may not have
come about is looked for first, by a note that it left in its transaction, so that nothing is done twice.

Nothing outside of this module opens the database, so nothing ever sees "database is locked".
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from multinode.errors import ServerStopping
from multinode_control_plane.databases import Database, open_database, unreachable
from multinode_control_plane.watchdog import Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
MAX_BATCH = 256
READERS = 4
PATIENCE_S = 0.05
"""How long what is not urgent waits for another's commit."""
AWAY_PATIENCE_S = 20.0
"""How long reads and writes wait for a database that is away, before they are answered that it is."""
HURRIED_PATIENCE_S = 1.0
"""The same, where this process is to end."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two attempts to connect to it."""


@dataclass
class Transaction:
    """One job's view of the writer's transaction.

    ``connection`` executes statements; ``now`` is the same POSIX time for the whole job. What `wake`, `changed` and
    `after_commit` ask for happens after the commit, and not at all where the job raises.
    """

    connection: sa.Connection
    now: float
    woken: bool = False
    events: set[str] = field(default_factory=set)
    effects: list[object] = field(default_factory=list)

    def wake(self) -> None:
        """Lets the scheduler tick, in this very transaction."""
        self.woken = True

    def changed(self, *keys: str) -> None:
        """Wakes those who wait for any of ``keys``."""
        self.events.update(keys)

    def after_commit(self, effect: object) -> None:
        """Hands ``effect`` (one of the scheduler's actions) to it after the commit."""
        self.effects.append(effect)


@dataclass(frozen=True)
class _Part:
    """What a job does to ``item``, which ``do_all(tx, items)`` does to several of its ``kind`` at once."""

    kind: Hashable
    item: object
    do_all: Callable[[Transaction, list[Any]], list[Any]]

    def __call__(self, tx: Transaction) -> Any:
        (result,) = self.do_all(tx, [self.item])
        return result


@dataclass
class _Write(Generic[T]):
    job: Callable[[Transaction], T]
    future: Future[T] | asyncio.Future[T]
    durable: bool
    writer: object = None
    put_at: float = field(default_factory=time.monotonic)
    result: T | None = None
    error: BaseException | None = None
    given_up: bool = False
    """Whether it was answered that the database is away."""

    @property
    def is_for_loop(self) -> bool:
        """Whether the answer is to be given on the event loop."""
        return isinstance(self.future, asyncio.Future)

    def answer(self) -> None:
        """Gives it, unless nobody waits any more."""
        if self.future.done() or self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


class Changes:
    """Who waits for what, in memory, on the event loop. A waiter costs one object and no thread."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._all_woken = False

    @contextmanager
    def subscribe(self, *keys: str) -> Iterator[asyncio.Event]:
        """An event that is set at the next change of any of ``keys``. Subscribe first, then read, then wait."""
        event = asyncio.Event()
        if self._all_woken:
            event.set()
        once = set(keys)
        for key in once:
            self._waiters.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            for key in once:
                waiters = self._waiters[key]
                waiters.discard(event)
                if not waiters:
                    del self._waiters[key]

    def fire(self, keys: set[str]) -> None:
        """Sets the events of all who wait for any of ``keys``."""
        for key in keys:
            for event in self._waiters.get(key, ()):
                event.set()

    def fire_each(self) -> None:
        """Wakes everybody once: something may have been missed."""
        self.fire(set(self._waiters))

    def fire_all(self) -> None:
        """Wakes everybody, now and from now on: the server stops, and every waiter gets its answer."""
        self._all_woken = True
        for waiters in self._waiters.values():
            for event in waiters:
                event.set()

    @property
    def stopping(self) -> bool:
        """Whether `fire_all` was called."""
        return self._all_woken


class Store:
    """A database behind one writer thread and a few readers.

    ``tick(tx)`` is the scheduler's, called inside the transaction; ``perform(effects)`` is called on the loop
    after each commit. ``on_commit(writers, lasted_s)`` and ``on_failure(error)`` are called by the writer's thread, for whoever
    counts; ``writers`` holds for each job what ``writer_of()`` said when it was given to `write`.
    """

    def __init__(self, database: Database | str) -> None:
        self.database = open_database(database) if isinstance(database, str) else database
        self.engine = self.database.engine
        self.id = secrets.token_hex(8)
        """Of this process, among those that use the database."""
        self._jobs: queue.SimpleQueue[_Write[Any] | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="looker")
        self._local = threading.local()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._later: deque[_Write[Any]] = deque()
        self._held: deque[_Write[Any]] = deque()
        """Taken from the queue while the database was away, for those who waited too long to be told."""
        self._closed = False
        self._hurried = False
        self._writing: sa.Connection | None = None
        self._number = 0
        self._in_doubt: list[Transaction] | None = None
        """What the batch did, from when its commit is asked for until the answer is there."""
        self._watchdog = Watchdog(self.database.cut)
        self.changes = Changes()
        self.tick: Callable[[Transaction], None] = lambda tx: None
        self.perform: Callable[[list[object]], None] = lambda effects: None
        self.writer_of: Callable[[], object] = lambda: None
        self.on_commit: Callable[[list[object], float], None] = lambda writers, lasted_s: None
        self.fence: Callable[[sa.Connection], None] = lambda connection: None
        """Called in each of the writer's transactions before it changes anything; raises where this process may no more."""
        self.announce: Callable[[sa.Connection, list[Transaction]], None] = lambda c, txs: None
        """Called at the end of each: tells the other processes, with its commit, what it did."""
        self.on_failure: Callable[[Exception], None] = lambda error: None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the writer."""
        self._loop = loop
        if self.database.is_shared:
            self._watchdog.open()
        self._thread = threading.Thread(target=self._write_forever, name="writer")
        self._thread.start()

    def close(self) -> None:
        """Writes what waits, then ends the threads."""
        while self._later:
            self._put_later()
        self._closed = True
        self._be_quick()
        self._jobs.put(None)
        if self._thread:
            self._thread.join()
        self._readers.shutdown()
        self._looker.shutdown()
        self._watchdog.close()
        self.database.engine.dispose()

    def hurry(self) -> None:
        """This process is to end: from now on nobody waits long for a database that is away."""
        self._hurried = True
        self._be_quick()

    def _be_quick(self) -> None:
        self.database.hurry()
        self._watchdog.hurry()

    @property
    def _patience_s(self) -> float:
        if self._closed:
            return 0.0
        return HURRIED_PATIENCE_S if self._hurried else AWAY_PATIENCE_S

    def on_loop(self, call: Callable[[], None]) -> None:
        """Has it called on the event loop, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(call)

    async def write(
        self, job: Callable[[Transaction], T], *, durable: bool = True, urgent: bool = True
    ) -> T:
        """``job``'s result, after the commit. Raises what ``job`` raised (then it changed nothing), or StorageFull.

        A crash of this process loses nothing that was committed. What is not ``durable`` may be lost in a power cut, with all
        that followed it: only for what no client is told, and what is found out again after the start. What is not ``urgent``
        goes along with the next commit, or is one of its own after 50 ms.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        write = _Write(job, answer, durable, self.writer_of())
        if urgent or self._closed:
            self._put(write)
        else:
            self._later.append(write)
            loop.call_later(PATIENCE_S, self._put_later)
        return await answer

    async def write_with_others(
        self, kind: Hashable, item: Item, do_all: Callable[[Transaction, list[Item]], list[T]]
    ) -> T:
        """As ``write(lambda tx: do_all(tx, [item])[0])``, but in one call with the others of the same ``kind`` that wait.

        ``do_all`` gives a result for each item, in their order. Where it raises for several, it is called for each alone.
        """
        return await self.write(_Part(kind, item, do_all))

    def _put_later(self) -> None:
        """Puts what waited long enough for a commit to go along with; one that was taken along left its place to another."""
        with suppress(IndexError, ServerStopping):
            self._put(self._later.popleft())

    def submit(self, job: Callable[[Transaction], T], *, durable: bool = True) -> Future[T]:
        """As `write`, for callers outside of the event loop."""
        answer: Future[T] = Future()
        self._put(_Write(job, answer, durable))
        return answer

    def _put(self, write: _Write[Any]) -> None:
        if self._closed:
            message = "The control plane is stopping."
            raise ServerStopping(message, "Ask again in a moment.")
        self._jobs.put(write)

    async def read(self, job: Callable[[sa.Connection], T]) -> T:
        """``job``'s result from a snapshot that holds everything that was answered before. Raises StoreUnreachable."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, job, time.monotonic())

    async def look(self, job: Callable[[sa.Connection], T]) -> T:
        """As `read`, but never behind what clients ask for: for what must be seen in time, however many ask."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._looker, self._read, job, time.monotonic())

    def _read(self, job: Callable[[sa.Connection], T], asked_at: float | None = None) -> T:
        since = time.monotonic() if asked_at is None else asked_at
        pauses = _pauses()
        while True:
            try:
                return self._read_once(job)
            except (sa.exc.DBAPIError, OverflowError) as error:
                is_away = self.database.is_away(error)
                if not is_away or time.monotonic() >= since + self._patience_s:
                    raise self.database.translated(error) from error
                time.sleep(next(pauses))

    def _read_once(self, job: Callable[[sa.Connection], T]) -> T:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self.database.engine.connect()
        self._watchdog.begin(connection)
        try:
            self.database.begin_reading(connection)
            return job(connection)
        except Exception as error:
            if self.database.is_away(error):
                self._local.connection = None
                connection.invalidate()
                connection.close()
            raise
        finally:
            try:
                if not connection.closed:
                    connection.rollback()
            finally:
                self._watchdog.end()

    def _write_forever(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run(batch)
        self._let_go()

    def _next_batch(self) -> list[_Write[Any]] | None:
        first = self._held.popleft() if self._held else self._jobs.get()
        if first is None:
            return None
        batch = [first]
        with suppress(IndexError):
            while True:
                batch.insert(0, self._later.pop())  # before it: it happened before
        while len(batch) < MAX_BATCH:
            if self._held:
                batch.append(self._held.popleft())
                continue
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._jobs.put(None)
                break
            batch.append(following)
        return [write for write in batch if not write.given_up]

    def _run(self, batch: list[_Write[Any]]) -> None:
        """Runs the batch to its commit, on another connection where one is lost; then answers."""
        self._number += 1
        pauses = _pauses()
        began_at = time.perf_counter()
        while True:
            try:
                transactions = self._watched(batch)
                break
            except Exception as error:  # noqa: BLE001, RUF100 - the writer's outermost edge: each waiter gets it
                failure = self.database.translated(error)
                self.on_failure(failure)
                if not self.database.is_away(error):
                    self._roll_back()
                    self._fail(batch, failure)
                    return
                self._let_go()
                log.warning("the database is away: %s", error)
                if not self._wait_for_database(batch, error, next(pauses)):
                    return
        self.on_commit([write.writer for write in batch], time.perf_counter() - began_at)
        self._answer(batch, transactions)

    def _watched(self, batch: list[_Write[Any]]) -> list[Transaction]:
        connection = self._connected()
        self._watchdog.begin(connection)
        try:
            return self._try(connection, batch)
        finally:
            self._watchdog.end()

    def _try(self, connection: sa.Connection, batch: list[_Write[Any]]) -> list[Transaction]:
        """What the batch did, once it is committed; or what it had done, where its commit turns out to have come about."""
        self.database.begin(connection, durable=any(write.durable for write in batch))
        if (done := self._in_doubt) is not None:
            was_committed = self.database.was_committed(connection, self.id, self._number)
            self._in_doubt = None  # not earlier: this connection may be lost too
            if was_committed:
                connection.rollback()
                return done
            batch[:] = [write for write in batch if not write.given_up]
        self.fence(connection)
        transactions: list[Transaction] = []
        if len(batch) == 1:  # nothing else that a savepoint would have to save
            transactions.append(self._run_alone(connection, batch[0]))
        else:
            for together in _by_kind(batch):
                self._run_jobs(connection, together, transactions)
        if any(tx.woken for tx in transactions):
            transactions.append(self._run_tick(connection))
        self.announce(connection, transactions)
        self.database.note_commit(connection, self.id, self._number)
        self._in_doubt = transactions
        connection.commit()
        self._in_doubt = None
        return transactions

    def _connected(self) -> sa.Connection:
        if self._writing is None:
            self._writing = self.database.engine.connect()
        return self._writing

    def _roll_back(self) -> None:
        self._in_doubt = None
        try:
            if self._writing is not None:
                self._writing.rollback()
        except sa.exc.DBAPIError:
            self._let_go()

    def _let_go(self) -> None:
        """Closes the connection; what it had begun is no more."""
        connection, self._writing = self._writing, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _wait_for_database(
        self, batch: list[_Write[Any]], error: Exception, pause_s: float
    ) -> bool:
        """A pause, after those who have waited too long were answered; False where the store is closing."""
        while True:
            try:
                following = self._jobs.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._jobs.put(None)
                break
            self._held.append(following)
        since = time.monotonic() - self._patience_s
        late = [w for w in (*batch, *self._held) if w.put_at <= since and not w.given_up]
        for write in late:
            write.given_up = True
            write.error = unreachable(str(getattr(error, "orig", error)))
        self._deliver(late, set(), [])
        if self._closed:
            return False
        if self._in_doubt is None:
            batch[:] = [write for write in batch if not write.given_up]
        time.sleep(pause_s)
        return True

    @staticmethod
    def _run_alone(connection: sa.Connection, write: _Write[Any]) -> Transaction:
        tx = Transaction(connection, time.time())
        write.error = None  # of an attempt before
        write.result = write.job(tx)
        return tx

    def _run_jobs(
        self,
        connection: sa.Connection,
        writes: list[_Write[Any]],
        transactions: list[Transaction],
    ) -> None:
        """Runs what can be done together in one savepoint; each in one of its own, where it fails so."""
        tx = Transaction(connection, time.time())
        connection.exec_driver_sql("SAVEPOINT job")
        try:
            results = _results(tx, writes)
        except sa.exc.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001, RUF100 - belongs to the caller of this job alone
            if self.database.is_away(error):
                raise
            connection.exec_driver_sql("ROLLBACK TO job")
            connection.exec_driver_sql("RELEASE job")
            if len(writes) == 1:
                writes[0].error = self.database.translated(error)
                return
            for write in writes:
                self._run_jobs(connection, [write], transactions)
            return
        connection.exec_driver_sql("RELEASE job")
        for write, result in zip(writes, results, strict=True):
            write.result, write.error = result, None  # of an attempt before
        transactions.append(tx)

    def _run_tick(self, connection: sa.Connection) -> Transaction:
        tx = Transaction(connection, time.time())
        self.tick(tx)
        return tx

    def _answer(self, batch: list[_Write[Any]], transactions: list[Transaction]) -> None:
        events = set().union(*(tx.events for tx in transactions)) if transactions else set()
        effects = [effect for tx in transactions for effect in tx.effects]
        self._deliver(batch, events, effects)

    def _fail(self, batch: list[_Write[Any]], error: Exception) -> None:
        for write in batch:
            write.error = write.error or error
        self._deliver(batch, set(), [])

    def _deliver(self, batch: list[_Write[Any]], events: set[str], effects: list[object]) -> None:
        """Wakes the loop once for all of it: each wake costs two threads a turn of the interpreter."""
        told_there = [write for write in batch if write.is_for_loop]
        if self._loop and (told_there or events or effects):
            self._loop.call_soon_threadsafe(self._publish, told_there, events, effects)
        for write in batch:
            if not write.is_for_loop:
                write.answer()

    def _publish(self, told: list[_Write[Any]], events: set[str], effects: list[object]) -> None:
        """In the order in which somebody waits for more: a worker to be made, a client for an end, then who wrote."""
        if effects:
            self.perform(effects)
        self.changes.fire(events)
        for write in told:
            write.answer()


def _by_kind(batch: list[_Write[Any]]) -> list[list[_Write[Any]]]:
    """What is done in one go, where its first one stands: nobody was answered yet, so that any order will do."""
    groups: dict[Hashable, list[_Write[Any]]] = {}
    for write in batch:
        key = write.job.kind if isinstance(write.job, _Part) else id(write)
        groups.setdefault(key, []).append(write)
    return list(groups.values())


def _results(tx: Transaction, writes: list[_Write[Any]]) -> list[Any]:
    if parts := [write.job for write in writes if isinstance(write.job, _Part)]:
        return parts[0].do_all(tx, [part.item for part in parts])
    return [write.job(tx) for write in writes]


def _pauses() -> Iterator[float]:
    """Between attempts: doubling up to the longest."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
