"""Verification of signatures: the only code of both sides that needs `cryptography`.

The package is imported on use: the service has it, and a client with the extra `sign`.
"""

from __future__ import annotations

from lora_contract.signing.keys import PublicKey


def is_valid_signature(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Verify a signature of a message: 64 bytes for Ed25519, DER for ECDSA with SHA-256."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    loaded = load_der_public_key(key.der)
    try:
        if isinstance(loaded, Ed25519PublicKey):
            loaded.verify(signature, message)
        else:
            assert isinstance(loaded, EllipticCurvePublicKey)  # the only other algorithm of `PublicKey`
            loaded.verify(signature, message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
