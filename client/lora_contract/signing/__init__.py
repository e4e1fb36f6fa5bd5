"""Signatures of versions: DSSE envelopes, their in-toto statements, public keys, and verification."""

from __future__ import annotations

from lora_contract.signing.dsse import PAYLOAD_TYPE, Envelope, Signature, pae, payload_of, signatures_of, wrap_signature
from lora_contract.signing.formats import FORMATS, SignatureFormat, check_signed, require_key_of
from lora_contract.signing.keys import Algorithm, PublicKey, parse_public_key
from lora_contract.signing.model_signing import (
    MODEL_PREDICATE_TYPE,
    check_model_statement,
    make_model_statement,
    parse_bundle,
    wrap_bundle,
)
from lora_contract.signing.statement import PREDICATE_TYPE, check_statement, make_statement
from lora_contract.signing.verifying import is_valid_signature

__all__ = [
    "Algorithm",
    "Envelope",
    "FORMATS",
    "MODEL_PREDICATE_TYPE",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "PublicKey",
    "Signature",
    "SignatureFormat",
    "check_model_statement",
    "check_signed",
    "check_statement",
    "make_model_statement",
    "make_statement",
    "pae",
    "parse_bundle",
    "parse_public_key",
    "payload_of",
    "require_key_of",
    "wrap_bundle",
    "wrap_signature",
    "signatures_of",
    "is_valid_signature",
]
