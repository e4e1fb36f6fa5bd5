"""Trust in other issuers' identity tokens, and the tokens that were taken."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Index, Text, text
from sqlmodel import Field, SQLModel

from lora_registry.db.tables.columns import big_int, foreign_key, row_id


class TrustedIssuer(SQLModel, table=True):
    """Where the keys of an issuer are; all None: where its discovery document says. It is trusted only by rules."""

    __tablename__ = "trusted_issuer"

    issuer: str = Field(primary_key=True, max_length=512)
    jwks_url: str | None = Field(default=None, max_length=512)
    jwks: str | None = Field(default=None, sa_type=Text)
    ca: str | None = Field(default=None, sa_type=Text)


class TrustRuleRow(SQLModel, table=True):
    """A trust rule. A removed one stays, since events and tokens name it; its name may be given again."""

    __tablename__ = "trust_rule"
    __table_args__ = (
        CheckConstraint("kind in ('github', 'gitlab', 'kubernetes', 'person', 'other')", name="kind"),
        CheckConstraint("seconds > 0", name="seconds"),
        Index(
            "uq_trust_rule_live_name",
            "name",
            unique=True,
            sqlite_where=text("removed_at IS NULL"),
            postgresql_where=text("removed_at IS NULL"),
        ),
    )

    id: int = row_id()
    name: str = Field(max_length=48)
    kind: str = Field(max_length=16)
    issuer: str = Field(max_length=512, foreign_key="trusted_issuer.issuer")
    audience: str = Field(max_length=512)
    claims: str = Field(sa_type=Text)
    """Claim -> value, as JSON with sorted keys."""
    grants: str = Field(sa_type=Text)
    """As JSON."""
    seconds: int
    pull_requests: bool = False
    note: str = Field(default="", sa_type=Text)
    created_by: str = Field(max_length=128)
    created_at: int = big_int()
    removed_at: int | None = big_int(nullable=True)


class TokenOrigin(SQLModel, table=True):
    """A token that was issued for an identity token, and a rule that gave it grants."""

    __tablename__ = "token_origin"

    token_id: int = foreign_key("token.id", primary_key=True)
    rule_id: int = foreign_key("trust_rule.id", primary_key=True, index=True)


class TakenToken(SQLModel, table=True):
    """An identity token that was exchanged; kept until it has expired. key: sha256 of what identifies it."""

    __tablename__ = "taken_token"

    key: str = Field(primary_key=True, max_length=64)
    expires_at: int = big_int(index=True)
