"""Indexes in which each page of each list is a range, and the unfinished children of an invocation"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_index("invocations_status", "invocations", ["project", "status", "seq"])
    op.create_index(
        "invocations_function_status", "invocations", ["project", "function", "status", "seq"]
    )
    op.create_index(
        "invocations_version_status", "invocations", ["version_id", "function", "status", "seq"]
    )
    is_unfinished_child = sa.text("parent_id IS NOT NULL AND finished_at IS NULL")
    op.create_index(
        "invocations_children",
        "invocations",
        ["parent_id", "seq"],
        sqlite_where=is_unfinished_child,
        postgresql_where=is_unfinished_child,
    )
    # What was found with these is found with the new ones; each would be written at each change.
    op.drop_index("invocations_function", "invocations")
    op.drop_index("invocations_in_flight", "invocations")
