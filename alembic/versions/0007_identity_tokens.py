"""Trust in identity tokens of other issuers

Revision: 0007
Follows: 0006
"""

import sqlalchemy as sa

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "taken_token",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_taken_token")),
    )
    with op.batch_alter_table("taken_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_taken_token_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "trusted_issuer",
        sa.Column("issuer", sa.String(length=512), nullable=False),
        sa.Column("jwks_url", sa.String(length=512), nullable=True),
        sa.Column("jwks", sa.Text(), nullable=True),
        sa.Column("ca", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("issuer", name=op.f("pk_trusted_issuer")),
    )
    op.create_table(
        "trust_rule",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("issuer", sa.String(length=512), nullable=False),
        sa.Column("audience", sa.String(length=512), nullable=False),
        sa.Column("claims", sa.Text(), nullable=False),
        sa.Column("grants", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Integer(), nullable=False),
        sa.Column("pull_requests", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "kind in ('github', 'gitlab', 'kubernetes', 'person', 'other')", name=op.f("ck_trust_rule_kind")
        ),
        sa.CheckConstraint("seconds > 0", name=op.f("ck_trust_rule_seconds")),
        sa.ForeignKeyConstraint(["issuer"], ["trusted_issuer.issuer"], name=op.f("fk_trust_rule_issuer")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trust_rule")),
    )
    with op.batch_alter_table("trust_rule", schema=None) as batch_op:
        batch_op.create_index(
            "uq_trust_rule_live_name",
            ["name"],
            unique=True,
            sqlite_where=sa.text("removed_at IS NULL"),
            postgresql_where=sa.text("removed_at IS NULL"),
        )

    op.create_table(
        "token_origin",
        sa.Column("token_id", BIG, nullable=False),
        sa.Column("rule_id", BIG, nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"], name=op.f("fk_token_origin_token_id")),
        sa.ForeignKeyConstraint(["rule_id"], ["trust_rule.id"], name=op.f("fk_token_origin_rule_id")),
        sa.PrimaryKeyConstraint("token_id", "rule_id", name=op.f("pk_token_origin")),
    )
    with op.batch_alter_table("token_origin", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_token_origin_rule_id"), ["rule_id"], unique=False)


def downgrade() -> None:
    op.drop_table("token_origin")
    op.drop_table("trust_rule")
    op.drop_table("trusted_issuer")
    op.drop_table("taken_token")
