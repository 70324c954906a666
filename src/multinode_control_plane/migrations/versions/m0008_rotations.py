"""What the last rotation of the keys was asked with, and what it has done"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("sealing", sa.Column("request_key", sa.Text(), nullable=True))
    op.add_column("sealing", sa.Column("retiring", sa.JSON(), nullable=True))
    op.add_column("sealing", sa.Column("resealed", sa.Integer(), nullable=True))
