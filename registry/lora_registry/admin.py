"""Administration commands: schema, checks, tokens. Does not import the HTTP stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_contract.roles import Grant, Visibility
from lora_contract.wire.access import TokenView
from lora_registry.access import namespaces, tokens
from lora_registry.auth.principals import OPERATOR
from lora_registry.context import Context
from lora_registry.db import revision
from lora_registry.db.engine import make_engine, require_connection
from lora_registry.jobs.engine import client as engine_client
from lora_registry.keeping import fsck as keeping_fsck
from lora_registry.settings import ServiceSettings
from lora_registry.storage import open_blobs
from lora_registry.wiring import open_context


def migrate(settings: ServiceSettings) -> None:
    """Migrate our tables, then those of the job engine."""
    settings.make_data_folder()
    engine = make_engine(settings.resolved_database_url)
    require_connection(engine)
    if not revision.is_current(engine):
        from lora_registry.db.migrate import upgrade

        upgrade(engine)
    engine.dispose()
    engine_client.migrate(settings.resolved_database_url)


def check(settings: ServiceSettings) -> Iterator[str]:
    """Yield one line per component that works. Raises RegistryError for the first that does not."""
    engine = open_checked(settings).db.engine
    yield f"database: {engine.url.render_as_string(hide_password=True)}, newest schema"
    open_blobs(settings).check()
    yield f"blobs: {settings.storage_url or settings.data.resolve()}"
    yield f"login: {settings.auth}"


def fsck(
    settings: ServiceSettings, *, repair: bool, sample: float, rate: float | None
) -> Iterator[keeping_fsck.Checked]:
    """Check the rows of blobs against the store, then the store against the rows. rate: in bytes per second."""
    ctx = open_checked(settings)
    yield from keeping_fsck.check_rows(ctx, sample=sample, rate=rate, repair=repair)
    yield from keeping_fsck.unnamed(ctx)


def create_token(
    settings: ServiceSettings, *, name: str, grants: Sequence[Grant], lifetime: float | None = None, note: str = ""
) -> str:
    """Create a token and return its secret, which is not stored. lifetime: seconds until it expires."""
    with open_checked(settings).db.write() as session:
        return tokens.create(session, OPERATOR, name, grants, lifetime=lifetime, note=note)


def list_tokens(settings: ServiceSettings) -> list[TokenView]:
    with open_checked(settings).db.read() as session:
        return tokens.list_all(session, OPERATOR, limit=None).items


def revoke_token(settings: ServiceSettings, name: str) -> None:
    with open_checked(settings).db.write() as session:
        tokens.revoke(session, OPERATOR, name)


def rotate_token(settings: ServiceSettings, name: str, *, overlap: float, lifetime: float | None) -> str:
    """Return the new secret. overlap: seconds for which the old one remains valid."""
    with open_checked(settings).db.write() as session:
        return tokens.rotate(session, OPERATOR, name, overlap=overlap, lifetime=lifetime)


def set_visibility(settings: ServiceSettings, name: str, visibility: Visibility) -> None:
    with open_checked(settings).db.write() as session:
        namespaces.set_visibility(session, OPERATOR, name, visibility)


def open_checked(settings: ServiceSettings) -> Context:
    """Open the context; require a reachable database at the newest schema."""
    ctx = open_context(settings)
    require_connection(ctx.db.engine)
    revision.require_current(ctx.db.engine)
    return ctx
