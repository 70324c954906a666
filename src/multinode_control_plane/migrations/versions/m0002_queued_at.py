"""Since when an invocation waits for a slot and room"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("invocations", sa.Column("queued_at", sa.Float(), nullable=True))
