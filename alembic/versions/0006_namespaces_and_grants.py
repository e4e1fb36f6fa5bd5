"""Namespaces with a visibility; tokens with several grants, expiry and rotation; titles of jobs without hidden names

Revision: 0006
Follows: 0005
"""

import time

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DEFAULT_NAMESPACE = "default"
HIDDEN = "(hidden)"


def upgrade() -> None:
    connection = op.get_bind()
    op.create_table(
        "namespace",
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("visibility", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("visibility in ('private', 'internal', 'public')", name=op.f("ck_namespace_visibility")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_namespace")),
    )
    with op.batch_alter_table("namespace", schema=None) as batch_op:
        batch_op.create_index("ix_namespace_visibility", ["visibility"], unique=False)
    connection.execute(
        sa.text(
            "INSERT INTO namespace (name, visibility, created_at) "
            "SELECT namespace, 'private', min(created_at) FROM repository GROUP BY namespace"
        )
    )

    # Read first: SQLite rebuilds the table, which no row may refer to then.
    tokens = connection.execute(sa.text("SELECT id, hash, role, namespace, created_at FROM token")).all()
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("ck_token_role"), type_="check")
        batch_op.drop_constraint(batch_op.f("uq_token_hash"), type_="unique")
        for name in ("hash", "role", "namespace"):
            batch_op.drop_column(name)
        batch_op.add_column(sa.Column("note", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("created_by", sa.String(length=128), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("expires_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("last_used_at", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.alter_column("note", server_default=None)
        batch_op.alter_column("created_by", server_default=None)

    op.create_table(
        "token_secret",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("token_id", BIG, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"], name=op.f("fk_token_secret_token_id")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_token_secret")),
    )
    with op.batch_alter_table("token_secret", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_token_secret_token_id"), ["token_id"], unique=False)
    op.create_table(
        "token_grant",
        sa.Column("token_id", BIG, nullable=False),
        sa.Column("pattern", sa.String(length=96), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.CheckConstraint("role in ('reader', 'writer', 'maintainer', 'admin')", name=op.f("ck_token_grant_role")),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"], name=op.f("fk_token_grant_token_id")),
        sa.PrimaryKeyConstraint("token_id", "pattern", name=op.f("pk_token_grant")),
    )
    for token_id, digest, role, namespace, created_at in tokens:
        values = {"id": token_id, "hash": digest, "role": role, "pattern": namespace or "*", "at": created_at}
        connection.execute(
            sa.text("INSERT INTO token_secret (hash, token_id, created_at) VALUES (:hash, :id, :at)"), values
        )
        connection.execute(
            sa.text("INSERT INTO token_grant (token_id, pattern, role) VALUES (:id, :pattern, :role)"), values
        )

    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("mentions", sa.Text(), nullable=False, server_default="[]"))
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.alter_column("mentions", server_default=None)
    _hide_names(connection)


def _hide_names(connection: sa.Connection) -> None:
    """Take versions of other namespaces out of the titles of jobs: who may read a job need not be able to read them."""
    jobs = connection.execute(sa.text("SELECT id, namespace, title FROM job")).all()
    for job_id, namespace, title in jobs:
        shown = " ".join(_shown(word, namespace) for word in title.split(" "))
        if shown != title:
            connection.execute(sa.text("UPDATE job SET title = :title WHERE id = :id"), {"title": shown, "id": job_id})


def _shown(word: str, namespace: str) -> str:
    if word in (HIDDEN, "inspect", "validate", "diff", "reproduce", "on", "+", "-", "->"):
        return word
    home, slash, _ = word.partition("/")
    return word if (home if slash else DEFAULT_NAMESPACE) == namespace else HIDDEN


def downgrade() -> None:
    """A token with several grants keeps the weakest of its roles, in the namespace of that grant; one whose pattern the
    old schema cannot hold is revoked."""
    connection = op.get_bind()
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_column("mentions")
    grants = connection.execute(sa.text("SELECT token_id, pattern, role FROM token_grant")).all()
    query = "SELECT token_id, hash FROM token_secret ORDER BY created_at"
    secrets = dict(connection.execute(sa.text(query)).tuples().all())
    op.drop_table("token_grant")
    op.drop_table("token_secret")
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hash", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("role", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("namespace", sa.String(length=96), nullable=True))
    ranks = ("reader", "writer", "maintainer", "admin")
    for (token_id,) in connection.execute(sa.text("SELECT id FROM token")).all():
        own = [(pattern, role) for held_by, pattern, role in grants if held_by == token_id]
        pattern, role = min(own, key=lambda grant: ranks.index(grant[1]), default=("-", "reader"))
        secret = secrets.get(token_id)
        held = pattern == "*" or ("*" not in pattern and pattern != "-")
        values = {
            "id": token_id,
            "hash": secret if secret is not None else f"none-{token_id}",
            "role": "writer" if role == "maintainer" else role,
            "namespace": None if pattern == "*" else pattern.replace("*", "-"),
            "revoked": None if held and secret is not None else time.time_ns() // 1000,
        }
        connection.execute(
            sa.text(
                "UPDATE token SET hash = :hash, role = :role, namespace = :namespace, "
                "revoked_at = coalesce(revoked_at, :revoked) WHERE id = :id"
            ),
            values,
        )
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.alter_column("hash", existing_type=sa.String(length=64), nullable=False)
        batch_op.alter_column("role", existing_type=sa.String(length=16), nullable=False)
        batch_op.create_check_constraint(batch_op.f("ck_token_role"), "role in ('reader', 'writer', 'admin')")
        batch_op.create_unique_constraint(batch_op.f("uq_token_hash"), ["hash"])
        for name in ("note", "created_by", "expires_at", "last_used_at"):
            batch_op.drop_column(name)
    op.drop_table("namespace")
