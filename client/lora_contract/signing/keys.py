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

# Edwards25519: -x^2 + y^2 = 1 + D x^2 y^2 over the integers modulo Q (RFC 8032, section 5.1).
_Q: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _Q) % _Q
_Y8: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER: Final = frozenset({0, 1, _Q - 1, _Y8, _Q - _Y8})
"""The y of the eight points whose order divides 8. _Y8: of a point of order 8."""

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
    def pem(self) -> str:
        """`der` as PEM, as OpenSSL writes it."""
        lines = (self.text[start : start + 64] for start in range(0, len(self.text), 64))
        return "\n".join((_HEAD, *lines, _TAIL, ""))

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
    """Parse a SubjectPublicKeyInfo. Raises RegistryError `invalid-request`, also for a key that is not a point of its
    curve, and for a key of small order."""
    key = read_der(der)
    if key.algorithm == "ed25519":
        _check_ed25519(der[len(_ED25519) :])
    else:
        _check_p256(der[len(_P256) :])
    return key


def read_der(der: bytes) -> PublicKey:
    """Read a SubjectPublicKeyInfo without a check of its point: enough to show a key, not to trust it."""
    if der.startswith(_ED25519) and len(der) == len(_ED25519) + 32:
        return PublicKey("ed25519", der)
    if der.startswith(_P256) and len(der) == len(_P256) + 64:
        return PublicKey("ecdsa-p256", der)
    raise RegistryError(
        "invalid-request", "The key is not a SubjectPublicKeyInfo of an Ed25519 or P-256 key.", hint=_HINT
    )


def _check_ed25519(encoded: bytes) -> None:
    """Refuse what RFC 8032 cannot decode, and keys of small order: anyone can make signatures that those verify."""
    y = int.from_bytes(encoded, "little") & (2**255 - 1)
    if y % _Q in _SMALL_ORDER:
        raise RegistryError("invalid-request", "The key has a small order, so that it proves nothing.", hint=_HINT)
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _Q) % _Q
    if y >= _Q or pow(square, (_Q - 1) // 2, _Q) != 1:
        raise RegistryError("invalid-request", "The key is not a point on the curve Ed25519.", hint=_HINT)


def _check_p256(point: bytes) -> None:
    x, y = int.from_bytes(point[:32], "big"), int.from_bytes(point[32:], "big")
    if x >= _P or y >= _P or (y * y - (x * x * x - 3 * x + _B)) % _P != 0:
        raise RegistryError("invalid-request", "The key is not a point on the curve P-256.", hint=_HINT)
