"""First schema

Revision: 0001
Follows:
"""

import sqlalchemy as sa

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blob",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blob")),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index("ix_event_namespace_id", ["namespace", "id"], unique=False)

    op.create_table(
        "idempotency",
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("author", "key", name=op.f("pk_idempotency")),
    )
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_created_at"), ["created_at"], unique=False)

    op.create_table(
        "recipe",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_recipe")),
    )
    op.create_table(
        "repository",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("next_number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind in ('base', 'adapter', 'model', 'dataset')", name=op.f("ck_repository_kind")),
        sa.CheckConstraint("next_number >= 1", name=op.f("ck_repository_next_number")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repository")),
        sa.UniqueConstraint("namespace", "name", name=op.f("uq_repository_namespace_name")),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("role in ('reader', 'writer', 'admin')", name=op.f("ck_token_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("hash", name=op.f("uq_token_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_token_name")),
    )
    op.create_table(
        "upload_session",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_session")),
    )
    with op.batch_alter_table("upload_session", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_upload_session_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "worker_lease",
        sa.Column("executor_id", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("queues", sa.String(length=1024), nullable=False),
        sa.Column("beat_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("executor_id", name=op.f("pk_worker_lease")),
    )
    op.create_table(
        "base_alias",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("alias", sa.String(length=512), nullable=False),
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"], name=op.f("fk_base_alias_repository_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_alias")),
        sa.UniqueConstraint("namespace", "alias", name=op.f("uq_base_alias_namespace_alias")),
    )
    with op.batch_alter_table("base_alias", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_base_alias_repository_id"), ["repository_id"], unique=False)

    op.create_table(
        "upload_file",
        sa.Column("session_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["upload_session.id"], name=op.f("fk_upload_file_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "digest", name=op.f("pk_upload_file")),
    )
    op.create_table(
        "version",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("commit_id", sa.String(length=40), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_config", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("base_version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("recipe_digest", sa.String(length=71), nullable=True),
        sa.Column("weights_absent", sa.Boolean(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=True),
        sa.Column("meta", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("yanked_reason", sa.Text(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("number >= 1", name=op.f("ck_version_number")),
        sa.ForeignKeyConstraint(["base_version_id"], ["version.id"], name=op.f("fk_version_base_version_id")),
        sa.ForeignKeyConstraint(["recipe_digest"], ["recipe.digest"], name=op.f("fk_version_recipe_digest")),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"], name=op.f("fk_version_repository_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_version")),
        sa.UniqueConstraint("repository_id", "id", name=op.f("uq_version_repository_id_id")),
        sa.UniqueConstraint("repository_id", "number", name=op.f("uq_version_repository_id_number")),
    )
    with op.batch_alter_table("version", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_version_base_version_id"), ["base_version_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_version_digest"), ["digest"], unique=False)
        batch_op.create_index("ix_version_repository_commit", ["repository_id", "commit_id"], unique=False)
        batch_op.create_index(
            "uq_version_live_digest",
            ["repository_id", "digest"],
            unique=True,
            sqlite_where=sa.text("deleted_at IS NULL"),
            postgresql_where=sa.text("deleted_at IS NULL"),
        )

    op.create_table(
        "base_fingerprint",
        sa.Column("version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("rendered_template", sa.String(length=71), nullable=True),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_base_fingerprint_version_id")),
        sa.PrimaryKeyConstraint("version_id", name=op.f("pk_base_fingerprint")),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("namespace", sa.String(length=96), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("recipe_digest", sa.String(length=71), nullable=True),
        sa.Column("subject_version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("result_version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.ForeignKeyConstraint(["recipe_digest"], ["recipe.digest"], name=op.f("fk_job_recipe_digest")),
        sa.ForeignKeyConstraint(["result_version_id"], ["version.id"], name=op.f("fk_job_result_version_id")),
        sa.ForeignKeyConstraint(["subject_version_id"], ["version.id"], name=op.f("fk_job_subject_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_job_created_at"), ["created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_job_namespace"), ["namespace"], unique=False)
        batch_op.create_index(batch_op.f("ix_job_subject_version_id"), ["subject_version_id"], unique=False)

    op.create_table(
        "report",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_report_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_report")),
    )
    with op.batch_alter_table("report", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_report_version_id"), ["version_id"], unique=False)

    op.create_table(
        "tag",
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("protected", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("generation >= 1", name=op.f("ck_tag_generation")),
        sa.ForeignKeyConstraint(
            ["repository_id", "version_id"],
            ["version.repository_id", "version.id"],
            name=op.f("fk_tag_repository_id_version_id"),
        ),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"], name=op.f("fk_tag_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", "name", name=op.f("pk_tag")),
    )
    with op.batch_alter_table("tag", schema=None) as batch_op:
        batch_op.create_index("ix_tag_version", ["version_id"], unique=False)

    op.create_table(
        "tag_move",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("repository_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("from_version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("to_version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["from_version_id"], ["version.id"], name=op.f("fk_tag_move_from_version_id")),
        sa.ForeignKeyConstraint(["repository_id"], ["repository.id"], name=op.f("fk_tag_move_repository_id")),
        sa.ForeignKeyConstraint(["to_version_id"], ["version.id"], name=op.f("fk_tag_move_to_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tag_move")),
        sa.UniqueConstraint(
            "repository_id", "tag", "generation", name=op.f("uq_tag_move_repository_id_tag_generation")
        ),
    )
    op.create_table(
        "version_blob",
        sa.Column("version_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name=op.f("fk_version_blob_version_id")),
        sa.PrimaryKeyConstraint("version_id", "path", name=op.f("pk_version_blob")),
    )
    with op.batch_alter_table("version_blob", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_version_blob_digest"), ["digest"], unique=False)

    op.create_table(
        "version_edge",
        sa.Column("child_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("parent_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("relation", sa.String(length=16), nullable=False),
        sa.CheckConstraint("child_id <> parent_id", name=op.f("ck_version_edge_no_loop")),
        sa.ForeignKeyConstraint(["child_id"], ["version.id"], name=op.f("fk_version_edge_child_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["version.id"], name=op.f("fk_version_edge_parent_id")),
        sa.PrimaryKeyConstraint("child_id", "parent_id", "relation", name=op.f("pk_version_edge")),
    )
    with op.batch_alter_table("version_edge", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_version_edge_parent_id"), ["parent_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("version_edge", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_version_edge_parent_id"))

    op.drop_table("version_edge")
    with op.batch_alter_table("version_blob", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_version_blob_digest"))

    op.drop_table("version_blob")
    op.drop_table("tag_move")
    with op.batch_alter_table("tag", schema=None) as batch_op:
        batch_op.drop_index("ix_tag_version")

    op.drop_table("tag")
    with op.batch_alter_table("report", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_report_version_id"))

    op.drop_table("report")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_subject_version_id"))
        batch_op.drop_index(batch_op.f("ix_job_namespace"))
        batch_op.drop_index(batch_op.f("ix_job_created_at"))

    op.drop_table("job")
    op.drop_table("base_fingerprint")
    with op.batch_alter_table("version", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_version_live_digest",
            sqlite_where=sa.text("deleted_at IS NULL"),
            postgresql_where=sa.text("deleted_at IS NULL"),
        )
        batch_op.drop_index("ix_version_repository_commit")
        batch_op.drop_index(batch_op.f("ix_version_digest"))
        batch_op.drop_index(batch_op.f("ix_version_base_version_id"))

    op.drop_table("version")
    op.drop_table("upload_file")
    with op.batch_alter_table("base_alias", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_base_alias_repository_id"))

    op.drop_table("base_alias")
    op.drop_table("worker_lease")
    with op.batch_alter_table("upload_session", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_upload_session_expires_at"))

    op.drop_table("upload_session")
    op.drop_table("token")
    op.drop_table("repository")
    op.drop_table("recipe")
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_created_at"))

    op.drop_table("idempotency")
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.drop_index("ix_event_namespace_id")

    op.drop_table("event")
    op.drop_table("blob")
