"""What namespaces hold, and their quotas

Revision: 0008
Follows: 0007
"""

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COUNTED = """
UPDATE namespace SET
  bytes = (SELECT coalesce(sum(b.size), 0) FROM version_blob b JOIN version v ON v.id = b.version_id
           JOIN repository r ON r.id = v.repository_id
           WHERE r.namespace = namespace.name AND v.deleted_at IS NULL AND b.stored),
  versions = (SELECT count(*) FROM version v JOIN repository r ON r.id = v.repository_id
              WHERE r.namespace = namespace.name AND v.deleted_at IS NULL)
"""


def upgrade() -> None:
    with op.batch_alter_table("namespace", schema=None) as batch_op:
        batch_op.add_column(sa.Column("bytes", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("versions", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("max_bytes", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("max_versions", sa.BigInteger(), nullable=True))
        batch_op.create_check_constraint(op.f("ck_namespace_usage"), "bytes >= 0 and versions >= 0")
    op.execute(COUNTED)


def downgrade() -> None:
    with op.batch_alter_table("namespace", schema=None) as batch_op:
        batch_op.drop_constraint(op.f("ck_namespace_usage"), type_="check")
        for name in ("bytes", "versions", "max_bytes", "max_versions"):
            batch_op.drop_column(name)
