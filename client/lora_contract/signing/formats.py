"""The formats of signatures. `lora-reg`: of the version with its base, recipe and name; what policies count.
`model-signing`: of its files alone, for people who verify with OpenSSF's model_signing."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from lora_contract import decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import Manifest
from lora_contract.signing.keys import PublicKey
from lora_contract.signing.model_signing import MODEL_PREDICATE_TYPE, check_model_statement
from lora_contract.signing.statement import check_statement

SignatureFormat = Literal["lora-reg", "model-signing"]
FORMATS: Final[tuple[SignatureFormat, ...]] = get_args(SignatureFormat)


class _Kind(msgspec.Struct, frozen=True, rename={"predicate_type": "predicateType"}):
    predicate_type: str


def check_signed(payload: bytes, namespace: str, name: str, digest: Digest, manifest: Manifest) -> SignatureFormat:
    """Check that a statement is about this version, and return its format.

    Raises RegistryError `invalid-request` for a malformed statement or one of another predicate type,
    `signature-mismatch` if it is about something else.
    """
    try:
        kind = decoding.decode(payload, _Kind).predicate_type
    except msgspec.MsgspecError:
        kind = ""
    if kind == MODEL_PREDICATE_TYPE:
        check_model_statement(payload, manifest.files)
        return "model-signing"
    check_statement(payload, namespace, name, digest)
    return "lora-reg"


def require_key_of(signature_format: SignatureFormat, key: PublicKey) -> None:
    """Raises RegistryError `invalid-request` if programs of that format cannot verify signatures of the key."""
    if signature_format == "model-signing" and key.algorithm != "ecdsa-p256":
        raise RegistryError(
            "invalid-request",
            f"model_signing does not support keys of the type {key.algorithm}; expected ECDSA with P-256.",
            hint="Make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY.pem`.",
        )
