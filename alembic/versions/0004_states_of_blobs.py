"""States of blobs, and a foreign key from every file to its blob

Revision: 0004
Follows: 0003
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("blob", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=False, server_default="ok"))
        batch_op.add_column(sa.Column("life", sa.String(length=8), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("condemned_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("verified_at", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("blob", schema=None) as batch_op:
        for name in ("state", "life", "verified_at"):
            batch_op.alter_column(name, server_default=None)
        batch_op.create_check_constraint(
            batch_op.f("ck_blob_state"), "state in ('ok', 'damaged', 'missing', 'deleting', 'absent')"
        )
        for name in ("state", "condemned_at", "verified_at"):
            batch_op.create_index(batch_op.f(f"ix_blob_{name}"), [name], unique=False)

    # Weights that were never uploaded had no row; a blob that is stored always had one.
    for state, stored in (("ok", sa.true()), ("absent", sa.false())):
        files = sa.table("version_blob", *map(sa.column, ("digest", "size", "stored")))
        blobs = sa.table(
            "blob", *map(sa.column, ("digest", "size", "created_at", "state", "life", "condemned_at", "verified_at"))
        )
        unknown = (
            sa.select(
                files.c.digest, sa.func.max(files.c.size), sa.literal(0), sa.literal(state), sa.literal(""), sa.literal(0)
            )
            .where(files.c.stored == stored, files.c.digest.not_in(sa.select(blobs.c.digest)))
            .group_by(files.c.digest)
        )
        op.execute(
            sa.insert(blobs).from_select(["digest", "size", "created_at", "state", "life", "verified_at"], unknown)
        )

    with op.batch_alter_table("version_blob", schema=None) as batch_op:
        batch_op.create_foreign_key(batch_op.f("fk_version_blob_digest"), "blob", ["digest"], ["digest"])
    with op.batch_alter_table("upload_file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_upload_file_digest"), ["digest"], unique=False)

    op.create_table(
        "orphan",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("life", sa.String(length=8), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("doomed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "life", name=op.f("pk_orphan")),
    )
    op.create_table(
        "task_lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_task_lease")),
    )


def downgrade() -> None:
    op.drop_table("task_lease")
    op.drop_table("orphan")
    with op.batch_alter_table("upload_file", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_upload_file_digest"))
    with op.batch_alter_table("version_blob", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_version_blob_digest"), type_="foreignkey")
    with op.batch_alter_table("blob", schema=None) as batch_op:
        for name in ("state", "condemned_at", "verified_at"):
            batch_op.drop_index(batch_op.f(f"ix_blob_{name}"))
        batch_op.drop_constraint(batch_op.f("ck_blob_state"), type_="check")
        for name in ("state", "life", "condemned_at", "verified_at"):
            batch_op.drop_column(name)
