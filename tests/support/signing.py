"""Keys and signatures for tests, made by `cryptography` and not by the code under test."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (  # fmt: skip
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from lora_contract.digest import Digest
from lora_contract.signing import PublicKey, make_statement
from lora_contract.signing.keys import parse_der
from tests.support.envs import ensure_env

PAYLOAD_TYPE = "application/vnd.in-toto+json"
# sigstore no longer brings pyOpenSSL, which model-signing 1.1.1 imports.
MODEL_SIGNING = ["model-signing==1.1.1", "sigstore==4.5.1", "pyOpenSSL==26.4.0"]


def model_signing_programs() -> Path:
    """The folder of OpenSSF's model_signing and of a Python with in-toto's own libraries."""
    return ensure_env("model-signing", MODEL_SIGNING)


@dataclass(frozen=True)
class Signer:
    """A key pair. curve: ECDSA over P-256 instead of Ed25519."""

    curve: bool = False
    private: Any = field(init=False)

    def __post_init__(self) -> None:
        made = generate_private_key(SECP256R1()) if self.curve else Ed25519PrivateKey.generate()
        object.__setattr__(self, "private", made)

    @property
    def public(self) -> PublicKey:
        return parse_der(self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @property
    def pem(self) -> str:
        return str(self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "ascii")

    def sign(self, message: bytes) -> bytes:
        made: bytes = self.private.sign(message, *([ECDSA(SHA256())] if self.curve else []))
        return made

    def envelope(self, payload: bytes, *, payload_type: str = PAYLOAD_TYPE) -> dict[str, Any]:
        """DSSE, spelled out here as the standard has it."""
        kind = payload_type.encode()
        message = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
        signature = {"sig": base64.b64encode(self.sign(message)).decode(), "keyid": self.public.key_id}
        return {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [signature],
        }

    def of_version(self, namespace: str, name: str, digest: str) -> dict[str, Any]:
        """The body of a request that adds a signature."""
        return {
            "envelope": self.envelope(make_statement(namespace, name, Digest.parse(digest))),
            "key": self.public.text,
        }

    def write(self, folder: Path, passphrase: str | None = None) -> tuple[Path, Path]:
        """Files of the private and of the public half."""
        folder.mkdir(parents=True, exist_ok=True)
        secret, public = folder / "key.pem", folder / "pub.pem"
        locked = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        secret.write_bytes(self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
        public.write_text(self.pem)
        return secret, public
