"""Signatures of versions: stored as received, never removed, and verified again before each use."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import parse
from lora_contract.signing import (
    FORMATS,
    PAYLOAD_TYPE,
    PublicKey,
    check_signed,
    check_statement,
    is_valid_signature,
    pae,
    parse_public_key,
    payload_of,
    require_key_of,
    signatures_of,
    wrap_signature,
)
from lora_contract.signing.keys import read_der
from lora_contract.wire.signatures import SignatureList, SignatureView, SignRequest
from lora_registry.auth.caller import Caller
from lora_registry.db.tables import Repository, Version, VersionSignature
from lora_registry.events import audit
from lora_registry.repositories import resolve
from lora_registry.repositories.paths import VersionPath
from lora_registry.repositories.resolve import Readable
from lora_registry.runtime import paging
from lora_registry.runtime.clock import iso, now
from lora_registry.signatures import store


def add(caller: Caller, path: VersionPath, request: SignRequest) -> SignatureView:
    """Store a key's signature of a version. If the key has signed it before in this format, return the first one.

    Raises `invalid-request` for a malformed key or envelope, `signature-mismatch` if the key did not sign exactly this
    version.
    """
    caller.require("writer", path.namespace)
    key = parse_public_key(request.key)
    payload = payload_of(request.envelope)
    message = pae(PAYLOAD_TYPE, payload)
    signature = next((each for each in signatures_of(request.envelope) if is_valid_signature(key, message, each)), None)
    if signature is None:
        raise RegistryError("signature-mismatch", f"The envelope has no signature by the key {key.key_id}.")
    with caller.ctx.db.write() as session:
        repo = resolve.repository(session, caller.principal, path.repository, lock=True)
        version = resolve.in_repository(session, Readable(repo), path.selector)
        digest, manifest = Digest.parse(version.digest), parse(version.manifest)
        kind = check_signed(payload, repo.namespace, repo.name, digest, manifest)
        require_key_of(kind, key)
        row = next(iter(store.signatures(session, version.id, key_ids=[key.key_id], signature_format=kind)), None)
        if row is None:
            row = VersionSignature(
                version_id=version.id,
                key_id=key.key_id,
                key=key.der,
                statement=payload,
                signature=signature,
                format=kind,
                author=caller.principal.name,
                created_at=now(),
            )
            session.add(row)
            audit.record(
                session,
                "version-signed",
                principal=caller.principal,
                namespace=repo.namespace,
                subject=f"{repo.label}:v{version.number}",
                key=key.key_id,
                format=kind,
                digest=version.digest,
            )
        return _view(version, row)


def list_all(
    caller: Caller,
    path: VersionPath,
    *,
    key: str | None,
    signature_format: str | None,
    cursor: str | None,
    limit: int,
) -> SignatureList:
    """List signatures in order of arrival. key, signature_format: list only those of this key id, in this format."""
    if signature_format is not None and signature_format not in FORMATS:
        raise RegistryError(
            "invalid-request", f"format is {signature_format[:40]!r}; expected one of {', '.join(FORMATS)}."
        )
    after = paging.decode(cursor, int)
    with caller.ctx.db.read() as session:
        _, version = resolve.version(session, caller.principal, path)
        rows = store.signatures(
            session,
            version.id,
            key_ids=None if key is None else [key],
            signature_format=signature_format,
            after=after[0] if after else 0,
            limit=limit,
        )
        return SignatureList(
            items=[_view(version, row) for row in rows],
            next_cursor=paging.encode(rows[-1].id) if len(rows) == limit else None,
        )


def signers(session: Session, repo: Repository, version: Version, keys: Sequence[PublicKey]) -> list[str]:
    """Return the ids of the `keys` that signed exactly this version, verified from the stored bytes."""
    by_id = {key.key_id: key for key in keys}
    if not by_id:
        return []
    rows = store.signatures(session, version.id, key_ids=list(by_id), signature_format="lora-reg")
    return [row.key_id for row in rows if _is_valid(repo, version, by_id[row.key_id], row)]


def _is_valid(repo: Repository, version: Version, key: PublicKey, row: VersionSignature) -> bool:
    try:
        check_statement(row.statement, repo.namespace, repo.name, Digest.parse(version.digest))
    except RegistryError:
        return False
    return is_valid_signature(key, pae(PAYLOAD_TYPE, row.statement), row.signature)


def _view(version: Version, row: VersionSignature) -> SignatureView:
    key = read_der(row.key)  # it may be older than a check of `parse_der`
    return SignatureView(
        digest=version.digest,
        key_id=row.key_id,
        algorithm=key.algorithm,
        key=key.text,
        envelope=wrap_signature(row.statement, row.signature, row.key_id),
        author=row.author,
        created_at=iso(row.created_at),
        format=row.format,  # type: ignore[arg-type]
    )
