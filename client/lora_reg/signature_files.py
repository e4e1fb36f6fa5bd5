"""Signatures as files: Sigstore bundles of OpenSSF model signing, and DSSE envelopes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lora_contract import decoding
from lora_contract.errors import RegistryError
from lora_contract.signing import Envelope, PublicKey, SignatureFormat, parse_bundle, wrap_bundle
from lora_contract.signing.model_signing import MAX_BUNDLE_BYTES


def load_envelope(path: Path) -> Envelope:
    """Read the envelope of a file: a Sigstore bundle, or a DSSE envelope by itself.

    Raises RegistryError `invalid-request` for anything else.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BUNDLE_BYTES + 1)
    try:
        return decoding.decode(data, Envelope)
    except msgspec.MsgspecError:
        pass
    try:
        return parse_bundle(data)
    except RegistryError as error:
        raise RegistryError("invalid-request", f"{path}: {error.detail}", hint=error.hint) from error


def write_signature(path: Path, signature_format: SignatureFormat, envelope: Envelope, key: PublicKey) -> None:
    """Write a signature as its format has it: a Sigstore bundle (`model-signing`), or the envelope (`lora-reg`)."""
    data = wrap_bundle(envelope, key) if signature_format == "model-signing" else msgspec.json.encode(envelope)
    path.write_bytes(data + b"\n")
