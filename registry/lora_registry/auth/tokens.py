"""Bearer tokens. Only their sha256 is stored; they are shown once.

The format is `hf_` and letters and digits, because llama.cpp sends no other format.
"""

from __future__ import annotations

import hashlib
import secrets
import string

from sqlmodel import Session, select

from lora_contract.errors import RegistryError
from lora_contract.reference import check_namespace
from lora_registry.auth.principals import RANK, Principal, Role
from lora_registry.db.tables import Token
from lora_registry.runtime.clock import now

MAX_NAME = 128
_ALPHABET = string.ascii_letters + string.digits


def create(session: Session, *, name: str, role: Role, namespace: str | None) -> str:
    """Create a token and return it; it cannot be read again. Raises RegistryError `usage`, `exists`."""
    if role not in RANK:
        raise RegistryError("usage", f"{role!r} is not a role; expected reader, writer or admin.")
    if namespace is not None:
        check_namespace(namespace)
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise RegistryError("usage", f"A token name must have 1 to {MAX_NAME} printable characters.")
    if session.exec(select(Token).where(Token.name == name)).first():
        raise RegistryError("exists", f"A token named {name!r} already exists.")
    secret = "hf_" + "".join(secrets.choice(_ALPHABET) for _ in range(40))
    session.add(Token(name=name, hash=_hash(secret), role=role, namespace=namespace, created_at=now()))
    return secret


def verify(session: Session, secret: str) -> Principal:
    """Return the principal of a token. Raises RegistryError `unauthenticated`."""
    row = session.exec(select(Token).where(Token.hash == _hash(secret), Token.revoked_at == None)).first()  # noqa: E711
    if row is None:
        raise RegistryError("unauthenticated", "The token is unknown or was revoked.")
    return Principal(row.name, row.role, row.namespace)  # type: ignore[arg-type]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
