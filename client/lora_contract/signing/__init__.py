"""Signatures of versions: envelopes, the statement in them, and public keys. Whether one is valid."""

from __future__ import annotations

from lora_contract.signing.dsse import PAYLOAD_TYPE, Envelope, Signature, pae, payload_of, sealed, signatures_of
from lora_contract.signing.keys import Algorithm, PublicKey, parse_public_key
from lora_contract.signing.statement import PREDICATE_TYPE, check_statement, make_statement
from lora_contract.signing.verifying import verifies

__all__ = [
    "Algorithm",
    "Envelope",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "PublicKey",
    "Signature",
    "check_statement",
    "make_statement",
    "pae",
    "parse_public_key",
    "payload_of",
    "sealed",
    "signatures_of",
    "verifies",
]
