"""Keys for one project, and the bundles that were sent with them"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("keys", sa.Column("project", sa.Text(), nullable=True))
    op.create_table(
        "bundle_projects",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "project"),
    )
