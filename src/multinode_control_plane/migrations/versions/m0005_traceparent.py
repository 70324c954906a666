"""The trace in which an invocation was started"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("invocations", sa.Column("traceparent", sa.Text(), nullable=True))
