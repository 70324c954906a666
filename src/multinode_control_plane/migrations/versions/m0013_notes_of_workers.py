"""What the making of a worker waits for"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("workers", sa.Column("note", sa.Text(), nullable=True))
