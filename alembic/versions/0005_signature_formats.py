"""A key may sign a version in several formats

Revision: 0005
Follows: 0004
"""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("signature") as table:
        table.add_column(sa.Column("format", sa.String(length=16), nullable=False, server_default="lora-reg"))
        table.drop_constraint("uq_signature_version_id_key_id", type_="unique")
        table.create_unique_constraint("uq_signature_version_id_key_id_format", ["version_id", "key_id", "format"])
    restore_triggers()


def downgrade() -> None:
    """Fails if a key has signed a version in two formats: signatures are never removed."""
    with op.batch_alter_table("signature") as table:
        table.drop_constraint("uq_signature_version_id_key_id_format", type_="unique")
        table.drop_column("format")
        table.create_unique_constraint("uq_signature_version_id_key_id", ["version_id", "key_id"])
    restore_triggers()


def restore_triggers() -> None:
    """On SQLite the batch makes a new table, without the triggers."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER signature_stays_{verb} BEFORE {verb} ON signature "
                "BEGIN SELECT RAISE(ABORT, 'rows of signature stay as they were written'); END"
            )
