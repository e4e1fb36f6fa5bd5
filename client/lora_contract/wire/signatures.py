"""Signatures of versions on the wire."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lora_contract.signing import Algorithm, Envelope, SignatureFormat
from lora_contract.wire.common import Request, Response


class SignRequest(Request, frozen=True):
    """`POST …/versions/{selector}/signatures`. envelope: with a signature by `key`; others' signatures are ignored; its
    statement is ours, or one of OpenSSF model signing. key: the public key, as PEM or its base64 body."""

    envelope: Envelope
    key: Annotated[str, Meta(max_length=1024)]


class SignatureView(Response, frozen=True):
    """A signature that was verified on arrival: the signer had the key, which does not prove the signer's identity.

    digest: the version's. key_id: `sha256:` of the key's SubjectPublicKeyInfo, which `key` is in base64. author: the
    sender. format: of the statement; policies count `lora-reg` alone.
    """

    digest: str
    key_id: str
    algorithm: Algorithm
    key: str
    envelope: Envelope
    author: str
    created_at: str
    format: SignatureFormat = "lora-reg"


class SignatureList(Response, frozen=True):
    """In the order they arrived."""

    items: list[SignatureView]
    next_cursor: str | None = None
