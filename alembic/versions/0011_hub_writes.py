"""Files that Hub clients stage, and secrets of the URLs to which they send them

Revision: 0011
Follows: 0010
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "staging",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("branch", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("commit_id", sa.String(length=40), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind in ('model', 'dataset')", name=op.f("ck_staging_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_staging")),
        sa.UniqueConstraint("namespace", "name", "branch", name=op.f("uq_staging_namespace_name_branch")),
    )
    op.create_index(op.f("ix_staging_expires_at"), "staging", ["expires_at"])
    op.create_table(
        "staged_file",
        sa.Column("staging_id", sa.String(length=32), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(
            ["staging_id"], ["staging.id"], name=op.f("fk_staged_file_staging_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("staging_id", "path", name=op.f("pk_staged_file")),
    )
    op.create_index(op.f("ix_staged_file_digest"), "staged_file", ["digest"])
    with op.batch_alter_table("upload_session", schema=None) as batch_op:
        batch_op.add_column(sa.Column("capability", sa.String(length=64), nullable=True))
        batch_op.create_index(op.f("ix_upload_session_capability"), ["capability"])


def downgrade() -> None:
    with op.batch_alter_table("upload_session", schema=None) as batch_op:
        batch_op.drop_index(op.f("ix_upload_session_capability"))
        batch_op.drop_column("capability")
    op.drop_table("staged_file")
    op.drop_table("staging")
