"""Brings a database to this release's schema, with Alembic, which is imported only where there is something to do."""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa

from multinode.errors import IncompatibleVersion
from multinode_control_plane.databases import Database

HEAD = "0013"
"""The schema that this release reads and writes: the newest file in ``versions/``."""

ATTEMPTS, PAUSE_S = 10, 0.2
"""How often a change of the schema is tried, where it and a reader wait for each other."""


def current(connection: sa.Connection) -> str | None:
    """The schema that the database has; None where it is empty."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return found


def prepare(database: Database) -> None:
    """Sees to it that the schema is `HEAD` before it is used; it makes that of an empty database.

    One that other processes may use is never changed on the way: raises IncompatibleVersion where it is older, and on
    any database where it is newer.
    """
    with database.engine.connect() as connection:
        found = current(connection)
    if found is not None and found < HEAD and database.is_shared:
        message = f"The database has the schema {found}; this release needs {HEAD}."
        raise IncompatibleVersion(message, "Run `multinode server migrate` once, then start again.")
    if found != HEAD:
        upgrade(database)


def upgrade(database: Database) -> tuple[str | None, str]:
    """Brings the database to `HEAD`, in one transaction: what it was, and what it is. Others may use it meanwhile.

    A reader may hold a table that this waits for, and wait for one that this has changed: then it begins anew.
    Raises IncompatibleVersion for one that a later release has made.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _upgrade(database)
        except sa.exc.DBAPIError as error:
            if not database.is_away(error):
                raise
        time.sleep(PAUSE_S)
    return _upgrade(database)


def _upgrade(database: Database) -> tuple[str | None, str]:
    with database.engine.connect() as connection:
        database.begin_schema_change(connection)
        found = current(connection)
        if found is not None and found > HEAD:
            message = f"The database is of a later release (schema {found}; this one knows {HEAD})."
            raise IncompatibleVersion(message, "Install that release, or use another database.")
        if found != HEAD:
            make(connection)
        connection.commit()
    return found, HEAD


def make(connection: sa.Connection) -> None:
    """Brings what is there, or nothing, to `HEAD` in the transaction of the connection; `upgrade` looks before."""
    # Alembic costs 100 ms and 10 MiB: paid only by the first start and by upgrades.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
