"""DSSE v1 (https://github.com/secure-systems-lab/dsse): the bytes that are signed, and the envelope around them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from lora_contract.errors import RegistryError

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_PAYLOAD_BYTES: Final = 128 * 1024
"""About 700 files of a statement in the format of model signing."""
MAX_SIGNATURE_BYTES: Final = 128
"""Ed25519 signatures have 64 bytes, ECDSA over P-256 in DER at most 72."""
MAX_SIGNATURES: Final = 16


def _base64_length(size: int) -> int:
    return (size + 2) // 3 * 4


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """sig: base64. keyid: informative; verification does not use it."""

    sig: Annotated[str, Meta(max_length=_base64_length(MAX_SIGNATURE_BYTES))]
    keyid: Annotated[str, Meta(max_length=256)] = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """payload: base64, standard or URL-safe. signatures: one for each signer of the payload."""

    payload: Annotated[str, Meta(max_length=_base64_length(MAX_PAYLOAD_BYTES))]
    payload_type: Annotated[str, Meta(max_length=256)] = msgspec.field(name="payloadType")
    signatures: Annotated[list[Signature], Meta(min_length=1, max_length=MAX_SIGNATURES)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding (PAE), which is signed. Lengths are in bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def wrap_signature(payload: bytes, signature: bytes, key_id: str) -> Envelope:
    """Make an envelope of a statement with one signature."""
    return Envelope(
        payload=base64.b64encode(payload).decode("ascii"),
        payload_type=PAYLOAD_TYPE,
        signatures=[Signature(sig=base64.b64encode(signature).decode("ascii"), keyid=key_id)],
    )


def payload_of(envelope: Envelope) -> bytes:
    """The signed bytes. Raises RegistryError `invalid-request` for another payload type or invalid base64."""
    if envelope.payload_type != PAYLOAD_TYPE:
        raise RegistryError(
            "invalid-request",
            f"The payload type of the envelope is {envelope.payload_type[:80]!r}; expected {PAYLOAD_TYPE}.",
        )
    return decode_base64(envelope.payload, what="The envelope's payload", max_bytes=MAX_PAYLOAD_BYTES)


def signatures_of(envelope: Envelope) -> list[bytes]:
    """The decoded signatures, in order. Raises RegistryError `invalid-request`."""
    return [
        decode_base64(signature.sig, what="A signature of the envelope", max_bytes=MAX_SIGNATURE_BYTES)
        for signature in envelope.signatures
    ]


def decode_base64(text: str, *, what: str, max_bytes: int) -> bytes:
    """Decode canonical base64: padded, in one alphabet, without white space or unused bits, so that each value has one
    encoding.

    Raises RegistryError `invalid-request` without quoting the text, which may be a secret given by mistake.
    """
    if len(text) > _base64_length(max_bytes):
        raise RegistryError(
            "invalid-request", f"{what} has {len(text)} characters of base64; the maximum is {max_bytes} bytes."
        )
    url_safe = "-" in text or "_" in text
    try:
        data = base64.b64decode(text, altchars=b"-_" if url_safe else None, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RegistryError("invalid-request", f"{what} is not base64.") from error
    canonical = base64.urlsafe_b64encode(data) if url_safe else base64.b64encode(data)
    if canonical != text.encode("ascii") or len(data) > max_bytes:
        raise RegistryError("invalid-request", f"{what} is not canonical base64, or has more than {max_bytes} bytes.")
    return data
