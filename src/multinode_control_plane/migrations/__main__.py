"""``python -m multinode_control_plane.migrations``: brings the database to this release's schema, while others use it."""

from __future__ import annotations

import json
import os
import sys

import sqlalchemy as sa

from multinode.errors import InternalError, MultinodeError
from multinode_control_plane import migrations
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.settings import parser, resolve


def main(argv: list[str] | None = None) -> int:
    """Prints a line of JSON: ``{"result": {"database", "before", "after"}}`` or ``{"error"}``. Returns the exit code."""
    try:
        database = open_database(resolve(parser().parse_args(argv), os.environ).database)
        before, after = _migrated(database)
    except MultinodeError as error:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": told}))  # noqa: T201 - for the command that started this
        return 1
    result = {"database": database.name, "before": before, "after": after}
    print(json.dumps({"result": result}))  # noqa: T201
    return 0


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
