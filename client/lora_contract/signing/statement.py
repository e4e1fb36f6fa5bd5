"""The signed statement: the key's owner vouches for one version of one repository.

An in-toto Statement v1 (https://github.com/in-toto/attestation) with one subject.
"""

from __future__ import annotations

from typing import Any, Final

from lora_contract import canonical
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAX_STATEMENT_BYTES: Final = 4096
PREDICATE_TYPE: Final = "urn:lora-reg:version-signature:1"


def make_statement(namespace: str, name: str, digest: Digest) -> bytes:
    """Make the statement about a version, in canonical JSON."""
    return canonical.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": f"{namespace}/{name}", "digest": {"sha256": digest.hex}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {},
        }
    )


def check_statement(payload: bytes, namespace: str, name: str, digest: Digest) -> None:
    """Check that a statement is about this version of this repository and nothing else.

    Other predicate types are refused: a key that signs failure reports must not thereby vouch for the version. Unknown
    fields are ignored, as in-toto requires. Raises RegistryError `invalid-request` for a malformed statement,
    `signature-mismatch` for another subject.
    """
    try:
        document = canonical.loads_strict(payload, what="The signed statement", max_bytes=MAX_STATEMENT_BYTES)
    except RegistryError as error:
        raise RegistryError("invalid-request", error.detail) from error
    if not isinstance(document, dict):
        raise RegistryError("invalid-request", "The signed statement is not a JSON object.")
    for field, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if document.get(field) != expected:
            raise RegistryError(
                "invalid-request",
                f"The signed statement's {field} is {_excerpt(document.get(field))}; expected {expected!r}.",
            )
    subject = document.get("subject")
    if not (isinstance(subject, list) and len(subject) == 1 and isinstance(subject[0], dict)):
        raise RegistryError("invalid-request", "The signed statement must have exactly one subject.")
    found = (subject[0].get("name"), subject[0].get("digest"))
    if found != (f"{namespace}/{name}", {"sha256": digest.hex}):
        raise RegistryError(
            "signature-mismatch",
            f"The signed subject is {_excerpt(found[0])} with the digest {_excerpt(found[1])}; "
            f"expected {namespace}/{name} with sha256 {digest.hex}.",
        )


def _excerpt(value: Any) -> str:
    return repr(value)[:120]
