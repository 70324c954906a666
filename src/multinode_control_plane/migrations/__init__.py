"""Brings a database to this release's schema, with Alembic, which is imported only where there is something to do."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from multinode.errors import IncompatibleVersion

HEAD = "0002"
"""The schema that this release reads and writes: the newest file in ``versions/``."""


def current(engine: sa.Engine) -> str | None:
    """The schema that the database has; None where it is empty."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.exec_driver_sql(
            "SELECT version_num FROM alembic_version"
        ).scalar()
        return found


def upgrade(engine: sa.Engine) -> None:
    """Brings the database to `HEAD`. Raises IncompatibleVersion for one that a later release has made."""
    found = current(engine)
    if found == HEAD:
        return
    if found is not None and found > HEAD:
        message = f"The database is of a later release (schema {found}; this one knows {HEAD})."
        raise IncompatibleVersion(message, "Install that release, or another data folder.")
    # Alembic costs 100 ms and 10 MiB: paid only by the first start and by upgrades.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
