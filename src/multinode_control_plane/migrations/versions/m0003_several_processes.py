"""Several processes on one database: a leader, notes of commits, bundles; and numbers as long as SQLite's"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_LONGER = {
    "invocations": (
        ("not_made", False),
        ("num_failed_attempts", False),
        ("num_values", False),
        ("values_kept", False),
        ("values_bytes", False),
        ("revision", False),
    ),
    "executions": (("exit_code", True), ("signal", True)),
    "workers": (("memory_mib", False),),
    "yielded_values": (("number", False),),
}


def upgrade() -> None:
    op.add_column("workers", sa.Column("heard_at", sa.Float(), nullable=True))
    op.create_table(
        "leader",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("info", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute("INSERT INTO leader (id, epoch, beat) VALUES (1, 0, 0)")
    op.create_table(
        "commits",
        sa.Column("writer", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("writer"),
    )
    op.create_table(
        "bundles",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "bundle_parts",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "part"),
    )
    if op.get_context().dialect.name == "postgresql":  # SQLite's have 64 bits anyway
        for table, columns in _LONGER.items():
            for column, nullable in columns:
                op.alter_column(table, column, type_=sa.BigInteger(), existing_nullable=nullable)
