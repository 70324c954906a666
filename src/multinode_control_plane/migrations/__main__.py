"""``python -m multinode_control_plane.migrations``: brings the database to this release's schema, while others use it."""

from __future__ import annotations

import os
import sys

import sqlalchemy as sa

from multinode.errors import InternalError
from multinode_control_plane import migrations, programs
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.settings import parser, resolve


def main(argv: list[str] | None = None) -> int:
    """Prints a line of JSON: ``{"result": {"database", "before", "after"}}`` or ``{"error"}``. Returns the exit code."""

    def act() -> dict[str, str | None]:
        database = open_database(resolve(parser().parse_args(argv), os.environ).database)
        before, after = _migrated(database)
        return {"database": database.name, "before": before, "after": after}

    return programs.tell(act)


def _migrated(database: Database) -> tuple[str | None, str]:
    try:
        return migrations.upgrade(database)
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == "55P03":
            message = "A table was in use for 10 s; nothing was changed."
            raise InternalError(message, "Run `multinode server migrate` again.") from error
        raise database.translated(error) from error


if __name__ == "__main__":
    sys.exit(main())
