"""Retention rules of repositories

Revision: 0009
Follows: 0008
"""

import sqlalchemy as sa

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retention",
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("keep_last", sa.Integer(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("keep_last >= 1", name=op.f("ck_retention_keep_last")),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"], name=op.f("fk_retention_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", name=op.f("pk_retention")),
    )


def downgrade() -> None:
    op.drop_table("retention")
