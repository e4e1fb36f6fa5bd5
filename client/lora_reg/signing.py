"""Sign and verify versions on this machine. Needs `cryptography`, which the extra `sign` installs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.manifest import Manifest, parse
from lora_contract.reference import Reference
from lora_contract.signing import (
    PAYLOAD_TYPE,
    Envelope,
    PublicKey,
    SignatureFormat,
    check_signed,
    is_valid_signature,
    make_model_statement,
    make_statement,
    pae,
    parse_public_key,
    payload_of,
    require_key_of,
    signatures_of,
    wrap_signature,
)
from lora_contract.signing.keys import parse_der
from lora_contract.wire.signatures import SignatureView
from lora_reg.client import Client

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    PrivateKey: TypeAlias = Ed25519PrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class VerifiedVersion:
    """A version whose manifest this machine has hashed. digest: of the received manifest. number: as the server says,
    for people."""

    namespace: str
    name: str
    number: int
    digest: Digest
    manifest: Manifest

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.name}:v{self.number}"

    @property
    def reference(self) -> Reference:
        return Reference(self.name, self.namespace, digest=self.digest)


def load_private_key(path: Path, passphrase: Callable[[], str]) -> PrivateKey:
    """Load a private key in PEM format. passphrase: called only if the key is encrypted.

    Raises RegistryError `usage` if it is not such a key, if the passphrase is wrong, and without `cryptography`.
    """
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = path.read_bytes()
    try:
        try:
            found = load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            found = load_pem_private_key(data, passphrase().encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RegistryError(
            "usage",
            f"{path} is not a private key in PEM format, or the passphrase does not match.",
            hint="Make one with `openssl genpkey -algorithm ed25519 -aes256 -out KEY.pem`.",
        ) from error
    if isinstance(found, Ed25519PrivateKey):
        return found
    if isinstance(found, EllipticCurvePrivateKey) and isinstance(found.curve, SECP256R1):
        return found
    raise RegistryError(
        "usage",
        f"{path} is a key of an unsupported type; expected Ed25519, or ECDSA with P-256.",
        hint="Make one with `openssl genpkey -algorithm ed25519 -aes256 -out KEY.pem`.",
    )


def load_public_key(path: Path) -> PublicKey:
    """Load a public key in PEM format. Raises RegistryError `invalid-request` if it is not one."""
    return parse_public_key(path.read_text("utf-8", "replace"))


def public_half(key: PrivateKey) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return parse_der(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def fetch_subject(client: Client, ref: str | Reference) -> VerifiedVersion:
    """Resolve a reference and hash its manifest, without trusting the server.

    Raises `digest-mismatch` if the manifest has not the digest of the answer, or not the one in the reference.
    """
    wanted = client.parse(ref).folded()  # statements name a version in the one spelling of its repository
    view = client.version(wanted)
    named = Reference(wanted.name, wanted.namespace, digest=wanted.digest or Digest.parse(view.digest))
    data = client.manifest(named)
    digest = Digest.of(data)
    if digest != named.digest or str(digest) != view.digest:
        raise RegistryError(
            "digest-mismatch",
            f"The received manifest of {wanted} has {digest}; expected {named.digest}.",
            hint="Try again; if this persists, ask an administrator to run `lora-registry fsck`.",
        )
    return VerifiedVersion(wanted.namespace or "", wanted.name, view.number, digest, parse(data))


def require_same_files(subject: VerifiedVersion, folder: Path) -> None:
    """Require that a folder has the files of the version. Raises `digest-mismatch` with the first that differs."""
    for entry in subject.manifest.files:
        path = folder / entry.path
        if path.is_file():
            with path.open("rb") as file:
                found = Digest(hashlib.file_digest(file, "sha256").hexdigest())
            if found == entry.digest:
                continue
            what = f"has {found.short} in the folder and {entry.digest.short} in the registry"
        else:
            what = "is not there"
        raise RegistryError(
            "digest-mismatch",
            f"{entry.path} {what}: {subject.label} differs from {folder}.",
            hint="Push the folder, and sign the new version.",
        )


def make_envelope(
    subject: VerifiedVersion, key: PrivateKey, signature_format: SignatureFormat = "lora-reg"
) -> Envelope:
    """Sign the statement on a version. Raises `invalid-request` for a key that the format does not support."""
    require_key_of(signature_format, public_half(key))
    if signature_format == "model-signing":
        return sign_payload(make_model_statement(f"{subject.namespace}/{subject.name}", subject.manifest.files), key)
    return sign_payload(make_statement(subject.namespace, subject.name, subject.digest), key)


def sign_payload(payload: bytes, key: PrivateKey) -> Envelope:
    """Sign an in-toto statement."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

    message = pae(PAYLOAD_TYPE, payload)
    signed = key.sign(message, ECDSA(SHA256())) if isinstance(key, EllipticCurvePrivateKey) else key.sign(message)
    return wrap_signature(payload, signed, public_half(key).key_id)


def require_signed(
    client: Client,
    subject: VerifiedVersion,
    keys: Sequence[PublicKey],
    signature_format: SignatureFormat = "lora-reg",
) -> list[SignatureView]:
    """The signature of each key in this format. Raises `signature-mismatch` if a key has not signed this version."""
    return [_signed(client, subject, key, signature_format) for key in keys]


def _signed(
    client: Client, subject: VerifiedVersion, key: PublicKey, signature_format: SignatureFormat
) -> SignatureView:
    kind = "signature" if signature_format == "lora-reg" else f"{signature_format} signature"
    why = f"The registry has no {kind} of {subject.label} ({subject.digest.short}) by the key {key.key_id}."
    for view in client.signatures(subject.reference, key_id=key.key_id, signature_format=signature_format):
        try:
            if verify_envelope(subject, view.envelope, key) == signature_format:
                return view
        except RegistryError as error:
            why = f"The signature of {subject.label} by the key {key.key_id} is invalid: {error.detail}"
    raise RegistryError("signature-mismatch", why)


def verify_envelope(subject: VerifiedVersion, envelope: Envelope, key: PublicKey) -> SignatureFormat:
    """Verify that an envelope is this key's signature of the version; return its format.

    Raises `signature-mismatch` if it is not, `invalid-request` if the envelope or its statement is malformed.
    """
    payload = payload_of(envelope)
    message = pae(PAYLOAD_TYPE, payload)
    if not any(is_valid_signature(key, message, signature) for signature in signatures_of(envelope)):
        raise RegistryError("signature-mismatch", f"It was not made by the key {key.key_id}.")
    return check_signed(payload, subject.namespace, subject.name, subject.digest, subject.manifest)


def need_cryptography() -> None:
    """Raises RegistryError `usage` if the extra is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise RegistryError(
            "usage",
            "Signing and verifying need cryptography, which is not installed.",
            hint="Install lora-reg with the extra `sign`.",
        ) from error
