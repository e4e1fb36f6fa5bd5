"""The format of OpenSSF model signing: a statement that lists the files of a folder with their digests, and a Sigstore
bundle around its envelope and the id of a public key (https://github.com/sigstore/model-transparency).

`model_signing verify key` accepts such a bundle for a folder that was pulled, without a registry. The statement does
not cover the base, the recipe and the name of the version, so policies do not count it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from lora_contract import canonical, decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import FileEntry
from lora_contract.signing.dsse import MAX_PAYLOAD_BYTES, Envelope
from lora_contract.signing.keys import PublicKey
from lora_contract.signing.statement import STATEMENT_TYPE

MODEL_PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES: Final = 2 * MAX_PAYLOAD_BYTES
_HINT: Final = "Pull the version into an empty folder and sign that folder with `model_signing sign key`."


class _KeyHint(msgspec.Struct, frozen=True):
    hint: str = ""


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _KeyHint
    tlog_entries: list[Any] = []


class Bundle(msgspec.Struct, frozen=True, rename="camel"):
    """A Sigstore bundle for a verifier who has the public key. `hint`: the SHA-256 of that key in PEM."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: Envelope


class _Resource(msgspec.Struct, frozen=True):
    name: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    algorithm: Literal["sha256"]


class _Serialization(msgspec.Struct, frozen=True):
    method: Literal["files"]
    hash_type: Literal["sha256"] = "sha256"


class _Predicate(msgspec.Struct, frozen=True):
    resources: list[_Resource]
    serialization: _Serialization


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]


class _Statement(msgspec.Struct, frozen=True, rename={"type": "_type", "predicate_type": "predicateType"}):
    type: Literal["https://in-toto.io/Statement/v1"]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    subject: Annotated[list[_Subject], Meta(min_length=1, max_length=1)]
    predicate: _Predicate


def make_model_statement(name: str, files: Iterable[FileEntry]) -> bytes:
    """Make the statement about the files of a version, in canonical JSON. name: for people.

    Raises RegistryError `too-large` for more files than a statement may list.
    """
    ordered = sorted(files, key=lambda entry: PurePosixPath(entry.path))
    payload = canonical.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": _root(entry.digest.hex for entry in ordered)}}],
            "predicateType": MODEL_PREDICATE_TYPE,
            "predicate": {
                "resources": [
                    {"algorithm": "sha256", "digest": entry.digest.hex, "name": entry.path} for entry in ordered
                ],
                "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            },
        }
    )
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise RegistryError(
            "too-large",
            f"The statement on {len(ordered)} files has {len(payload)} bytes; the maximum is {MAX_PAYLOAD_BYTES}.",
            hint="Sign the version itself, without --format: that statement has a fixed size.",
        )
    return payload


def check_model_statement(payload: bytes, files: Sequence[FileEntry]) -> None:
    """Check that a statement covers exactly these files, as whole files by SHA-256.

    Files that the statement ignores are not covered. Raises RegistryError `invalid-request` for a malformed statement,
    `signature-mismatch` if the files differ.
    """
    try:
        canonical.loads_strict(payload, what="The signed statement", max_bytes=MAX_PAYLOAD_BYTES)
        statement = decoding.decode(payload, _Statement)
    except (RegistryError, msgspec.MsgspecError) as error:
        detail = error.detail if isinstance(error, RegistryError) else f"The signed statement is malformed: {error}."
        raise RegistryError("invalid-request", detail) from error
    resources = statement.predicate.resources
    signed = {resource.name: resource.digest for resource in resources}
    if len(signed) != len(resources):
        raise RegistryError("invalid-request", "The signed statement lists a file twice.")
    if statement.subject[0].digest.get("sha256") != _root(resource.digest for resource in resources):
        raise RegistryError("invalid-request", "The digest of the signed subject does not match the listed files.")
    for entry in files:
        found = signed.pop(entry.path, None)
        if found is None:
            raise _mismatch(f"The signature does not cover {entry.path}")
        if found != entry.digest.hex:
            raise _mismatch(f"The signed {entry.path} has sha256:{found[:12]}, the version has {entry.digest.short}")
    if signed:
        raise _mismatch(f"The signature covers {min(signed)[:120]!r}, which is not a file of the version")


def wrap_bundle(envelope: Envelope, key: PublicKey) -> bytes:
    """Make the bundle of an envelope that `key` has signed."""
    hint = hashlib.sha256(key.pem.encode("ascii")).hexdigest()
    material = _Material(public_key=_KeyHint(hint=hint))
    bundle = Bundle(media_type=BUNDLE_TYPE, verification_material=material, dsse_envelope=envelope)
    return msgspec.json.encode(bundle)


def parse_bundle(data: bytes) -> Envelope:
    """Return the envelope of a bundle. The hint of its key is not signed and not read.

    Raises RegistryError `invalid-request` for other documents, also for bundles signed with a certificate.
    """
    try:
        document = canonical.loads_strict(data, what="The bundle", max_bytes=MAX_BUNDLE_BYTES)
        if "publicKey" not in document.get("verificationMaterial", {}):
            raise RegistryError("invalid-request", "it was signed with a certificate, or names no key.")
        return decoding.decode(data, Bundle).dsse_envelope
    except (RegistryError, msgspec.MsgspecError, AttributeError, TypeError) as error:
        raise RegistryError(
            "invalid-request",
            f"This is not a Sigstore bundle of version 0.3 with a public key: {getattr(error, 'detail', error)}",
            hint="Make one with `model_signing sign key`.",
        ) from error


def _root(digests: Iterable[str]) -> str:
    return Digest.of(b"".join(map(bytes.fromhex, digests))).hex


def _mismatch(what: str) -> RegistryError:
    return RegistryError("signature-mismatch", f"{what}.", hint=_HINT)
