"""``python -m multinode_control_plane.moving``: an SQLite store into an empty PostgreSQL database, all of it or nothing.

Everything happens in one transaction on PostgreSQL's side, under the lock of the data folder: tables are made, rows copied and counted.
What breaks off leaves the database empty. The SQLite file is only read, once it has this release's schema.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from multinode.errors import Conflict, InputError, InternalError
from multinode_control_plane import data_folder, migrations, model, programs
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.service import bundles
from multinode_control_plane.settings import Settings, parser, resolve, without_password
from multinode_control_plane.store import Transaction

OF_PROCESSES = (model.leader, model.commits)
"""What only processes that run know; a new database has its own."""


@dataclass(frozen=True)
class Moved:
    """What was copied. ``database``: the URL without its password. ``rows``: of all tables together."""

    source: str
    database: str
    projects: int
    invocations: int
    rows: int


def main(argv: list[str] | None = None) -> int:
    """Prints a line of JSON: ``{"result"}`` (`Moved`) or ``{"error"}``. Returns the process's exit code."""
    made = parser()
    made.add_argument("--source")
    options = made.parse_args(argv)

    def act() -> dict[str, Any]:
        source = Path(options.source).absolute() if options.source else None
        return vars(move(resolve(options, os.environ), source))

    return programs.tell(act)


def move(settings: Settings, source: Path | None = None) -> Moved:
    """Copies the store of the data folder (or ``source``) to ``settings.database``.

    Raises InputError where there is no store, or where it is to go is no empty PostgreSQL database; Conflict where a control plane uses the
    data folder; StoreUnreachable; IncompatibleVersion for a store of a later release.
    """
    if settings.database.startswith("sqlite:"):
        message = "A store is moved to PostgreSQL, and no PostgreSQL database is named."
        raise InputError(message, "Write --to postgresql://user@host:5432/name.")
    file = source or settings.data_dir / "multinode.sqlite"
    if not file.is_file():
        message = f"There is no store at {file}."
        raise InputError(message, "Say where it is: MULTINODE_HOME, --data-dir or --from.")
    target = open_database(settings.database)
    with _held(settings.data_dir):
        _bring_forward(file)
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            # Its text as it is: JSON is not read, and so not written in another way.
            counts = _told(target, lambda: _copy_all(store, target, settings.data_dir))
    return Moved(
        source=str(file),
        database=without_password(settings.database),
        projects=counts[model.projects.name],
        invocations=counts[model.invocations.name],
        rows=sum(counts.values()),
    )


@contextlib.contextmanager
def _held(data_dir: Path) -> Iterator[None]:
    try:
        with data_folder.locked(data_dir):
            yield
    except FileNotFoundError as error:
        message = f"There is no data folder {data_dir}."
        raise InputError(message, "Say where it is: MULTINODE_HOME or --data-dir.") from error


def _bring_forward(file: Path) -> None:
    """Gives the store this release's schema, as a start would. Raises InputError where the file is none."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            store.execute("SELECT version_num FROM alembic_version")
    except sqlite3.DatabaseError as error:
        message = f"{file} is no store of a control plane: {error}."
        raise InputError(message, "Name the file with --from or --data-dir.") from error
    migrations.upgrade(open_database(f"sqlite:///{file}"))


def _told(database: Database, act: Any) -> dict[str, int]:
    """What ``act`` returns. Raises the database's errors as ours."""
    try:
        counts: dict[str, int] = act()
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "55P03":
            message = "Another process changes the database; nothing was changed."
            raise Conflict(message, "Try again when it is done.") from error
        raise database.translated(error) from error
    return counts


def _copy_all(store: sqlite3.Connection, target: Database, data_dir: Path) -> dict[str, int]:
    """Fills the database in one transaction; the number of rows of each table."""
    with target.engine.connect() as connection:
        target.begin_schema_change(connection)
        # A row of the store may take a while to be read; a machine that vanishes is noticed by its connection.
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        found = sa.inspect(connection).get_table_names()
        if found:
            message = f"The database is not empty: it has the table {sorted(found)[0]}."
            raise InputError(message, "Name a new, empty one. Nothing was changed.")
        migrations.make(connection)
        tables = [table for table in model.metadata.sorted_tables if table not in OF_PROCESSES]
        counts = {table.name: _copy(store, connection, table) for table in tables}
        _copy_bundles(connection, data_dir)
        connection.exec_driver_sql("ANALYZE")
        connection.commit()
    return counts


def _copy(store: sqlite3.Connection, connection: sa.Connection, table: sa.Table) -> int:
    """Copies a table's rows and where its numbers go on; how many rows there are now."""
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    rows = store.execute(f'SELECT {columns} FROM "{table.name}"')
    copied = 0
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        try:
            with cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN') as copy:
                for row in rows:
                    copy.write_row(row)
                    copied += 1
        except _driver_errors() as error:
            raise _not_taken(table, error) from error
    there = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    if there != copied:
        message = f"Of {copied} rows of {table.name}, {there} have arrived; nothing was changed."
        raise InternalError(message, "Move the store again.")
    _set_sequence(store, connection, table)
    return copied


def _set_sequence(store: sqlite3.Connection, connection: sa.Connection, table: sa.Table) -> None:
    """New rows get numbers that were never given, not to rows that are gone either."""
    column = table.autoincrement_column
    if column is None:
        return
    known = store.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,))
    for (last,) in known.fetchall():
        if last > 0:
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(sa.select(sa.func.setval(sequence, last)))


def _copy_bundles(connection: sa.Connection, data_dir: Path) -> None:
    """Those of versions, which a control plane on another machine has to find in the database; what is missing is passed over."""
    tx = Transaction(connection, time.time())
    digests = connection.execute(sa.select(model.versions.c.bundle_digest).distinct()).scalars()
    for digest in digests.all():
        number = 0
        with contextlib.suppress(FileNotFoundError):
            with (data_dir / "bundles" / f"{digest}.tar.gz").open("rb") as file:
                while content := file.read(bundles.PART_BYTES):
                    bundles.keep_part(tx, digest=digest, part=number, content=content)
                    number += 1
            bundles.keep(tx, digest=digest, parts=number)


def _driver_errors() -> tuple[type[Exception], ...]:
    """What the driver raises for rows that PostgreSQL does not take. It is an extra: imported where it is used."""
    import psycopg

    return (psycopg.DataError, psycopg.IntegrityError)


def _not_taken(table: sa.Table, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    message = f"PostgreSQL does not take a row of {table.name}: {reason:.200}"
    return InputError(message, "Nothing was changed; the control plane can go on with SQLite.")


if __name__ == "__main__":
    sys.exit(main())
