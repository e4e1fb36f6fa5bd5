"""Policies on tags, decisions of gates, and immutable rows

Revision: 0002
Follows: 0001
"""

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

IMMUTABLE = ("report", "policy", "decision", "approval")
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "policy",
        sa.Column("id", BIG, nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("pattern", sa.String(length=300), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("number >= 1", name=op.f("ck_policy_number")),
        sa.CheckConstraint("(body is null) = (digest is null)", name=op.f("ck_policy_lifted")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("pattern", "number", name=op.f("uq_policy_pattern_number")),
    )
    with op.batch_alter_table("policy", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_policy_namespace"), ["namespace"], unique=False)

    op.create_table(
        "approval",
        sa.Column("id", BIG, nullable=False),
        sa.Column("version_id", BIG, nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_approval_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approval")),
        sa.UniqueConstraint("version_id", "tag", "author", "role", name=op.f("uq_approval_version_id_tag_author_role")),
    )

    op.create_table(
        "decision",
        sa.Column("id", BIG, nullable=False),
        sa.Column("version_id", BIG, nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("base_digest", sa.String(length=71), nullable=False),
        sa.Column("holder_version_id", BIG, nullable=True),
        sa.Column("policy_digest", sa.String(length=71), nullable=False),
        sa.Column("report_id", sa.String(length=160), nullable=True),
        sa.Column("sets", sa.Text(), nullable=False),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_decision_version_id")),
        sa.ForeignKeyConstraint(["holder_version_id"], ["version.id"], name=op.f("fk_decision_holder_version_id")),
        sa.ForeignKeyConstraint(["report_id"], ["report.id"], name=op.f("fk_decision_report_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
    )
    with op.batch_alter_table("decision", schema=None) as batch_op:
        batch_op.create_index("ix_decision_version_tag", ["version_id", "tag"], unique=False)

    with op.batch_alter_table("tag_move", schema=None) as batch_op:
        batch_op.add_column(sa.Column("decision_id", BIG, nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_tag_move_decision_id"), "decision", ["decision_id"], ["id"])

    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'rows of % stay as they were written', TG_TABLE_NAME; END $$"
        )
        for table in IMMUTABLE:
            op.execute(
                f"CREATE TRIGGER {table}_stays BEFORE UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
            )
    else:
        for table in IMMUTABLE:
            for verb in ("update", "delete"):
                op.execute(
                    f"CREATE TRIGGER {table}_stays_{verb} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, 'rows of {table} stay as they were written'); END"
                )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in IMMUTABLE:
            op.execute(f"DROP TRIGGER {table}_stays ON {table}")
        op.execute("DROP FUNCTION refuse_change()")
    else:
        for table in IMMUTABLE:
            for verb in ("update", "delete"):
                op.execute(f"DROP TRIGGER {table}_stays_{verb}")
    with op.batch_alter_table("tag_move", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_tag_move_decision_id"), type_="foreignkey")
        batch_op.drop_column("decision_id")
    op.drop_table("approval")
    op.drop_table("decision")
    op.drop_table("policy")
