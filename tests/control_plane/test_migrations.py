"""Migrations: they make the schema that this release reads, from nothing and from each earlier one."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from multinode_control_plane import migrations, model
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.service import access
from multinode_control_plane.service.hashing import hash_secret


def database_at(folder: Path, revision: str | None) -> Database:
    """A database as an earlier release has left it; an empty one for None."""
    database = open_database(f"sqlite:///{folder / 'store.sqlite'}")
    if revision is not None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        with database.engine.connect() as connection:
            database.begin_schema_change(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            connection.commit()
    return database


UNUSED = {("workers", "heard_at"), ("leader", "info")}
"""Columns that a migration made and nothing reads or writes: they stay, for no migration takes anything away."""


def test_the_tables_are_those_of_the_model(tmp_path: Path) -> None:
    database = database_at(tmp_path, None)
    migrations.prepare(database)
    with database.engine.connect() as connection:
        # Not the types: SQLite's integers have one size, and stay as they were made.
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        found = compare_metadata(context, model.metadata)
    database.engine.dispose()
    left = {(table, column.name) for what, _, table, column in found if what == "remove_column"}
    assert (left, len(found)) == (UNUSED, len(UNUSED))


def test_a_key_of_the_first_schema_is_for_all_projects(tmp_path: Path) -> None:
    database = database_at(tmp_path, "0001")
    with database.engine.begin() as connection:
        known = {"name": "ada", "role": "read", "hash": hash_secret("mnk_old"), "created_at": 1.0}
        connection.execute(sa.insert(model.keys).values(known))
    migrations.prepare(database)
    with database.engine.connect() as connection:
        caller = access.key_ring(connection).find("mnk_old")
    database.engine.dispose()
    assert caller == access.Caller("ada", "read", project=None)
