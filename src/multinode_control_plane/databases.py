"""The databases that the store can stand on, as far as they differ: SQLite for one process, PostgreSQL for several.

Each says how a connection is made, how a writer's and a reader's transaction begin, and what its errors mean. On both there
is one writer at a time: SQLite has it so, and on PostgreSQL a writer's transaction begins with a lock that all
processes share, so that no use case has to know on which it runs.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from multinode.distribution import install_command
from multinode.errors import (
    InternalError,
    InvalidRequest,
    MissingExtra,
    StorageFull,
    StoreUnreachable,
)
from multinode_control_plane import database_passwords

WRITER_LOCK, SCHEMA_LOCK = 0x6D756C7469, 0x6D756C7470
"""PostgreSQL's advisory locks of ours: who writes, and who changes the schema."""

CONNECT_S, HURRIED_CONNECT_S = 5, 2
"""How long a new connection may take; libpq's least is the second."""


class Database(Protocol):
    """What the store needs to know of its database. Connections commit by themselves until one of the ``begin`` is called."""

    engine: sa.Engine
    name: str
    """``sqlite`` or ``postgresql``."""
    is_shared: bool
    """Whether several processes may use it at once."""

    def begin(self, connection: sa.Connection, *, durable: bool) -> None:
        """Begins the transaction of the one writer; its commit waits for the disk where it is ``durable``."""

    def begin_reading(self, connection: sa.Connection) -> None:
        """Begins a transaction that sees one state of the database."""

    def begin_schema_change(self, connection: sa.Connection) -> None:
        """Begins a transaction that no other of these runs beside."""

    def note_commit(self, connection: sa.Connection, writer: str, number: int) -> None:
        """Stores in the writer's transaction that it is this one, for `was_committed`."""

    def was_committed(self, connection: sa.Connection, writer: str, number: int) -> bool:
        """Whether the transaction with this note was the writer's last one that was committed. Comes after `begin`."""

    def note_listener(self, connection: sa.Connection, process: str) -> None:
        """Has `listeners` name the process for as long as the connection lasts."""

    def listeners(self, connection: sa.Connection) -> set[str]:
        """The processes of which a connection with their note lasts: those that live."""

    def cut(self, connection: sa.Connection) -> None:
        """Has the connection be lost for the thread that waits on it. Called by another one."""

    def hurry(self) -> None:
        """This process is to end: a new connection is waited for no longer than need be."""

    def is_away(self, error: Exception) -> bool:
        """Whether it means that the connection is lost, and that all of the transaction may be tried again on another."""

    def translated(self, error: Exception) -> Exception:
        """The error as one of ours, where it is the database's."""


class Sqlite:
    """A file. The process that holds the data folder is the only one that opens it."""

    name = "sqlite"
    is_shared = False

    def __init__(self, url: str) -> None:
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(
            url, hide_parameters=True, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
        )
        sa.event.listen(self.engine, "connect", self._prepare)

    @staticmethod
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        # BEGIN is ours: the driver would begin a deferred transaction, at the first write only.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=10000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def begin(self, connection: sa.Connection, *, durable: bool) -> None:
        """See `Database`. In WAL mode a commit that waits for the disk makes those before it durable too."""
        level = "FULL" if durable else "NORMAL"
        if connection.info.get("synchronous", "FULL") != level:
            connection.exec_driver_sql(f"PRAGMA synchronous={level}")
            connection.info["synchronous"] = level
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def begin_reading(self, connection: sa.Connection) -> None:
        """See `Database`."""
        connection.exec_driver_sql("BEGIN")

    def begin_schema_change(self, connection: sa.Connection) -> None:
        """See `Database`."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def note_commit(self, connection: sa.Connection, writer: str, number: int) -> None:
        """Nothing: the answer to a commit is never lost here."""

    def was_committed(self, connection: sa.Connection, writer: str, number: int) -> bool:
        """See `note_commit`."""
        return False

    def note_listener(self, connection: sa.Connection, process: str) -> None:
        """Nothing: there are no others."""

    def listeners(self, connection: sa.Connection) -> set[str]:
        """See `note_listener`."""
        return set()

    def cut(self, connection: sa.Connection) -> None:
        """Nothing: a file does not hang, or all of the machine does."""

    def hurry(self) -> None:
        """Nothing: a file is open at once."""

    def is_away(self, error: Exception) -> bool:
        """A file is there."""
        return False

    def translated(self, error: Exception) -> Exception:
        """See `Database`."""
        if isinstance(error, OverflowError) and "SQLite INTEGER" in str(error):
            return _out_of_range()
        if not isinstance(error, sa.exc.OperationalError):
            return error
        text = str(error.orig)
        return _full() if "full" in text or "disk I/O" in text else _silent(text)


class Postgres:
    """A PostgreSQL server, through psycopg."""

    name = "postgresql"
    is_shared = True

    def __init__(self, url: str) -> None:
        if find_spec("psycopg") is None:
            message = "PostgreSQL's driver is not installed here (psycopg missing)."
            raise MissingExtra(message, f"Install it with: {install_command('server,postgres')}")
        given, password = database_passwords.taken_out(sa.make_url(url))
        self.url = given.set(drivername="postgresql+psycopg")
        self.engine = sa.create_engine(
            self.url,
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            poolclass=sa.pool.NullPool,
            connect_args=connect_arguments(),
        )
        self._connect_s = CONNECT_S

        @sa.event.listens_for(self.engine, "do_connect")
        def give(_dialect: Any, _record: Any, _given: Any, named: dict[str, Any]) -> None:
            named["connect_timeout"] = self._connect_s
            if password is not None:
                named["password"] = password.read()

    def begin(self, connection: sa.Connection, *, durable: bool) -> None:
        """See `Database`. Each statement sees what was committed before it, and the lock makes that all there is."""
        level = "" if durable else "SET LOCAL synchronous_commit = off; "
        connection.exec_driver_sql(f"BEGIN; {level}SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    def begin_reading(self, connection: sa.Connection) -> None:
        """See `Database`."""
        connection.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def begin_schema_change(self, connection: sa.Connection) -> None:
        """See `Database`. No writer runs beside it, or each could wait for a table that the other has changed.

        Who waits for a table in vain (a reader that hangs) gives up, and may try again.
        """
        locks = "".join(
            f"; SELECT pg_advisory_xact_lock({lock})" for lock in (SCHEMA_LOCK, WRITER_LOCK)
        )
        connection.exec_driver_sql(f"BEGIN; SET LOCAL lock_timeout = '10s'{locks}")

    def note_commit(self, connection: sa.Connection, writer: str, number: int) -> None:
        """See `Database`."""
        connection.exec_driver_sql(
            "INSERT INTO commits (writer, number, at) VALUES (%s, %s, extract(epoch FROM now())) "
            "ON CONFLICT (writer) DO UPDATE SET number = excluded.number, at = excluded.at",
            (writer, number),
        )

    def was_committed(self, connection: sa.Connection, writer: str, number: int) -> bool:
        """See `Database`. The lock of `begin` is had only when the transaction that was in doubt has ended."""
        found = connection.exec_driver_sql(
            "SELECT number FROM commits WHERE writer = %s", (writer,)
        )
        return found.scalar() == number

    def note_listener(self, connection: sa.Connection, process: str) -> None:
        """See `Database`."""
        name = f"{_LISTENER}{process}"
        connection.exec_driver_sql("SELECT set_config('application_name', %s, false)", (name,))

    def listeners(self, connection: sa.Connection) -> set[str]:
        """See `Database`."""
        found = connection.exec_driver_sql(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
        ).scalars()
        return {name.removeprefix(_LISTENER) for name in found if name.startswith(_LISTENER)}

    def cut(self, connection: sa.Connection) -> None:
        """See `Database`. The socket is shut down, not closed: its number stays the waiting thread's."""
        driver: Any = connection.connection.driver_connection
        with suppress(OSError), socket.socket(fileno=os.dup(driver.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)

    def hurry(self) -> None:
        """See `Database`."""
        self._connect_s = HURRIED_CONNECT_S

    def is_away(self, error: Exception) -> bool:
        """See `Database`."""
        if not isinstance(error, sa.exc.DBAPIError):
            return False
        if error.connection_invalidated or isinstance(error, sa.exc.InterfaceError):
            return True
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            return isinstance(error, sa.exc.OperationalError)
        return state.startswith("08") or state in _AGAIN

    def translated(self, error: Exception) -> Exception:
        """See `Database`."""
        if isinstance(error, sa.exc.DataError):
            return _out_of_range()
        if not isinstance(error, sa.exc.DBAPIError) or isinstance(error, sa.exc.IntegrityError):
            return error
        if self.is_away(error):
            return unreachable(str(error.orig))
        if getattr(error.orig, "sqlstate", None) == "53100":
            return _full()
        return _silent(str(error.orig))


_LISTENER = "multinode listener "
"""Begins the name of the connection on which a process hears the others."""
_AGAIN = frozenset(
    {
        "57P01",  # the server stops
        "57P02",  # it crashed
        "57P03",  # it is starting
        "57P05",  # idle for too long
        "25P03",  # as above, in a transaction
        "25006",  # it has become a standby
        "53300",  # too many connections
        "40001",  # what a standby or a stricter setting makes of two at once
        "40P01",  # a deadlock with somebody else's hand
    }
)
"""States in which another connection, soon, will do."""


def connect_arguments() -> dict[str, Any]:
    """libpq's settings: each end notices within 5 s that the other is gone, and a writer that hangs loses its lock."""
    server_side = {
        "tcp_keepalives_idle": 2,
        "tcp_keepalives_interval": 1,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 5000,
        "idle_in_transaction_session_timeout": 5000,
        "timezone": "UTC",
    }
    return {
        "connect_timeout": CONNECT_S,
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 5000,
        "application_name": "multinode",
        "options": " ".join(f"-c {name}={value}" for name, value in server_side.items()),
    }


def open_database(url: str) -> Database:
    """The database at ``url``. Raises MissingExtra where its driver is not installed."""
    return Sqlite(url) if url.startswith("sqlite:") else Postgres(url)


def unreachable(why: str) -> StoreUnreachable:
    """The error for those who have waited for it long enough."""
    message = f"The control plane's database is out of reach: {' '.join(why.split())}"
    return StoreUnreachable(message, "Ask again; its administrator sees to the database.")


def _full() -> StorageFull:
    message = "The control plane's disk is full; nothing was changed."
    return StorageFull(message, "Free some space where its data lies, then try again.")


def _silent(text: str) -> InternalError:
    message = f"The control plane's database does not answer: {text}"
    return InternalError(message, "Look into its log (server.log in its data folder).")


def _out_of_range() -> InvalidRequest:
    return InvalidRequest("The request holds a number or a text that cannot be stored.")
