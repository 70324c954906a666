"""Workers that serve several invocations, or were started ahead of any"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for table, name, kind, default in (
        ("queues", "idle", sa.Integer(), "0"),
        ("queues", "min_workers", sa.Integer(), "0"),
        ("executions", "number", sa.Integer(), "1"),
        ("workers", "served", sa.Integer(), "1"),
        ("workers", "wanted", sa.Integer(), "1"),
        ("workers", "billed_s", sa.Float(), "0"),
    ):
        op.add_column(table, sa.Column(name, kind, nullable=False, server_default=default))
    op.add_column("executions", sa.Column("left_at", sa.Float()))
    op.add_column("workers", sa.Column("idle_at", sa.Float()))
    is_idle = sa.text("idle_at IS NOT NULL")
    op.create_index("executions_of_worker", "executions", ["worker_id", "number"])
    op.create_index(
        "workers_idle",
        "workers",
        ["project", "function"],
        sqlite_where=is_idle,
        postgresql_where=is_idle,
    )
