"""Public keys: Ed25519, and ECDSA over P-256 with SHA-256.

Each has a single encoding as SubjectPublicKeyInfo (RFC 8410, RFC 5480), a prefix and the key, so no ASN.1 is parsed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final, Literal

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_contract.signing.dsse import decode_base64

Algorithm = Literal["ed25519", "ecdsa-p256"]

_ED25519: Final = bytes.fromhex("302a300506032b6570032100")
_P256: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_MAX_BYTES: Final = 256
_HEAD: Final = "-----BEGIN PUBLIC KEY-----"
_TAIL: Final = "-----END PUBLIC KEY-----"
_HINT: Final = "Export the public key of an Ed25519 or P-256 key with `openssl pkey -in KEY.pem -pubout`."

# The curve P-256: y^2 = x^3 - 3x + B over the integers modulo P (FIPS 186-5, SP 800-186).
_P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_B: Final = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key. der: its SubjectPublicKeyInfo. Made by `parse_public_key`."""

    algorithm: Algorithm
    der: bytes

    @property
    def key_id(self) -> str:
        """The digest of `der`."""
        return str(Digest.of(self.der))

    @property
    def text(self) -> str:
        """`der` in base64 on one line: the normal form in policies."""
        return base64.b64encode(self.der).decode("ascii")


def parse_public_key(text: str) -> PublicKey:
    """Parse PEM, or its base64 body on one line. Raises RegistryError `invalid-request` without quoting the text."""
    if "PRIVATE KEY" in text:
        raise RegistryError(
            "invalid-request",
            "This is a private key; a public key is expected. The private key may have been disclosed.",
            hint=f"Generate a new key. {_HINT}",
        )
    body = text.strip()
    if body.startswith(_HEAD) and body.endswith(_TAIL):
        body = "".join(body.removeprefix(_HEAD).removesuffix(_TAIL).split())
    try:
        der = decode_base64(body, what="The key", max_bytes=_MAX_BYTES)
    except RegistryError as error:
        raise RegistryError("invalid-request", "The key is neither PEM nor base64.", hint=_HINT) from error
    return parse_der(der)


def parse_der(der: bytes) -> PublicKey:
    """Parse a SubjectPublicKeyInfo. Raises RegistryError `invalid-request`."""
    if der.startswith(_ED25519) and len(der) == len(_ED25519) + 32:
        return PublicKey("ed25519", der)
    if der.startswith(_P256) and len(der) == len(_P256) + 64:
        point = der[len(_P256) :]
        x, y = int.from_bytes(point[:32], "big"), int.from_bytes(point[32:], "big")
        if x < _P and y < _P and (y * y - (x * x * x - 3 * x + _B)) % _P == 0:
            return PublicKey("ecdsa-p256", der)
        raise RegistryError("invalid-request", "The key is not a point on the curve P-256.", hint=_HINT)
    raise RegistryError(
        "invalid-request", "The key is not a SubjectPublicKeyInfo of an Ed25519 or P-256 key.", hint=_HINT
    )
