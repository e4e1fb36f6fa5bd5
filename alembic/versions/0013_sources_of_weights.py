"""Where the weights of bases lie that were registered without them

Revision: 0013
Follows: 0012
"""

import sqlalchemy as sa

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "weight_source",
        sa.Column("version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("endpoint", sa.String(length=255), nullable=False),
        sa.Column("repository", sa.String(length=200), nullable=False),
        sa.Column("commit_id", sa.String(length=64), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_weight_source_version_id")),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_weight_source")),
    )


def downgrade() -> None:
    op.drop_table("weight_source")
