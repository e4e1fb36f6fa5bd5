"""Exports of old records, which may then be removed; a quota of jobs

Revision: 0010
Follows: 0009
"""

import sqlalchemy as sa

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
EXPORTED = {"report": "reports", "decision": "decisions"}
REFUSED = "rows of {table} stay as they were written"


def upgrade() -> None:
    op.create_table(
        "record_export",
        sa.Column("id", BIG, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=True),
        sa.Column("file", sa.String(length=255), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_record_export")),
    )
    op.create_index(op.f("ix_record_export_kind"), "record_export", ["kind"])
    op.create_table(
        "record_due",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("record_id", sa.String(length=160), nullable=False),
        sa.Column("export_id", BIG, nullable=False),
        sa.ForeignKeyConstraint(["export_id"], ["record_export.id"], name=op.f("fk_record_due_export_id")),
        sa.PrimaryKeyConstraint("kind", "record_id", name=op.f("pk_record_due")),
    )
    op.create_index(op.f("ix_record_due_export_id"), "record_due", ["export_id"])
    op.create_index(op.f("ix_version_recipe_digest"), "version", ["recipe_digest"])
    op.add_column("namespace", sa.Column("max_jobs", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("reserved_until", sa.BigInteger(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_loss() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF EXISTS (SELECT 1 FROM record_due d JOIN record_export e ON e.id = d.export_id "
            "WHERE d.kind = TG_ARGV[0] AND d.record_id = CAST(OLD.id AS TEXT) AND e.sha256 IS NOT NULL) "
            "THEN RETURN OLD; END IF; "
            f"RAISE EXCEPTION '{REFUSED.format(table='%')}', TG_TABLE_NAME; END $$"
        )
    for table, kind in EXPORTED.items():
        _drop(table)
        if op.get_bind().dialect.name == "postgresql":
            op.execute(
                f"CREATE TRIGGER {table}_stays BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
            )
            op.execute(
                f"CREATE TRIGGER {table}_exported BEFORE DELETE ON {table} "
                f"FOR EACH ROW EXECUTE FUNCTION refuse_loss('{kind}')"
            )
        else:
            _refuse(table, "update")
            _refuse(
                table,
                "delete",
                "WHEN NOT EXISTS (SELECT 1 FROM record_due d JOIN record_export e ON e.id = d.export_id "
                f"WHERE d.kind = '{kind}' AND d.record_id = CAST(OLD.id AS TEXT) AND e.sha256 IS NOT NULL) ",
            )


def downgrade() -> None:
    for table in EXPORTED:
        _drop(table)
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"DROP TRIGGER {table}_exported ON {table}")
            op.execute(
                f"CREATE TRIGGER {table}_stays BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
            )
        else:
            _refuse(table, "update")
            _refuse(table, "delete")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_loss()")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_column("reserved_until")
    with op.batch_alter_table("namespace", schema=None) as batch_op:
        batch_op.drop_column("max_jobs")
    op.drop_index(op.f("ix_version_recipe_digest"), "version")
    op.drop_table("record_due")
    op.drop_table("record_export")


def _drop(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER {table}_stays ON {table}")
    else:
        for verb in ("update", "delete"):
            op.execute(f"DROP TRIGGER {table}_stays_{verb}")


def _refuse(table: str, verb: str, condition: str = "") -> None:
    """On SQLite."""
    op.execute(
        f"CREATE TRIGGER {table}_stays_{verb} BEFORE {verb} ON {table} {condition}"
        f"BEGIN SELECT RAISE(ABORT, '{REFUSED.format(table=table)}'); END"
    )
