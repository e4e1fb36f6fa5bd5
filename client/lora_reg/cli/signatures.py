"""sign, verify, signature export, signature import."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lora_reg.cli.state import Command, LazyGroup, State, pass_state

if TYPE_CHECKING:
    from lora_contract.signing import SignatureFormat

PASSPHRASE: Final = "LORA_REG_KEY_PASSPHRASE"


_FORMAT = click.option(
    "--format", "signature_format", type=click.Choice(["lora-reg", "model-signing"]), default="lora-reg",
    show_default=True, help="Sign the version with its base and name, or its files for OpenSSF model_signing.",
)  # fmt: skip


@click.command(
    cls=Command,
    examples=(
        "lora-reg sign acme/sql-writer:v3 --key key.pem --dir ./adapter",
        "lora-reg sign acme/sql-writer:v3 --key p256.pem --format model-signing",
    ),
)
@click.argument("ref")
@click.option("--key", "key_file", required=True, metavar="FILE", help="Private key in PEM format: Ed25519 or P-256.")
@click.option(
    "--dir", "folder", metavar="DIR", help="Sign only if the files of the version equal those in this folder."
)
@_FORMAT
@pass_state
def sign(state: State, ref: str, key_file: str, folder: str | None, signature_format: SignatureFormat) -> None:
    """Sign a version with a private key.

    The signature covers the name of the repository and the digest of the version, which covers its files and its base.
    The passphrase of an encrypted key is prompted for, or taken from LORA_REG_KEY_PASSPHRASE. `openssl genpkey
    -algorithm ed25519 -aes256 -out KEY.pem` makes a key, and `openssl pkey -in KEY.pem -pubout -out PUB.pem` its public
    half. Policies count the format lora-reg alone.
    """
    from lora_reg.signing import fetch_subject, load_private_key, make_envelope, public_half, require_same_files

    key = load_private_key(Path(key_file), lambda: passphrase(key_file))
    client = state.client()
    subject = fetch_subject(client, ref)
    if folder is not None:
        require_same_files(subject, Path(folder))
    view = client.add_signature(subject.reference, make_envelope(subject, key, signature_format), public_half(key))
    output = state.output()
    output.result(
        "lora-reg/signature/1",
        view,
        human=[f"{subject.label}  {subject.digest.short}  signed by {view.key_id} ({view.algorithm})"],
        quiet=[view.key_id],
    )
    output.next(
        f"lora-reg signature export {subject.label} --key PUB.pem"
        if signature_format == "model-signing"
        else f"lora-reg verify {subject.label} --key PUB.pem"
    )


@click.command(
    cls=Command,
    examples=(
        "lora-reg verify acme/sql-writer:v3 --key pub.pem",
        "lora-reg verify acme/sql-writer:v3 --key p256.pub.pem --format model-signing",
    ),
)
@click.argument("ref")
@click.option(
    "--key", "key_files", required=True, multiple=True, metavar="FILE",
    help="Public key in PEM format; may be repeated, and each must have signed.",
)  # fmt: skip
@_FORMAT
@pass_state
def verify(state: State, ref: str, key_files: tuple[str, ...], signature_format: SignatureFormat) -> None:
    """Verify that a key has signed a version.

    The exit status is 7 if it has not. The manifest is hashed and the signature verified on this machine. Files are not
    downloaded: a pull by the printed digest verifies them against that manifest.
    """
    from lora_reg.formatting.text import Line, Word
    from lora_reg.signing import fetch_subject, load_public_key, need_cryptography, require_signed

    need_cryptography()
    keys = [load_public_key(Path(file)) for file in key_files]
    client = state.client()
    subject = fetch_subject(client, ref)
    found = require_signed(client, subject, keys, signature_format)
    output = state.output()
    output.result(
        "lora-reg/verification/1",
        {
            "namespace": subject.namespace,
            "name": subject.name,
            "number": subject.number,
            "digest": str(subject.digest),
            "signatures": found,
        },
        human=[
            f"{subject.label}  {subject.digest}",
            *(Line("  ", Word("signed", "good"), f" by {key.key_id} ({key.algorithm})", hang=4) for key in keys),
        ],
        quiet=[str(subject.reference)],
    )
    output.next(f"lora-reg pull {subject.reference}")


@click.group(cls=LazyGroup)
def signature() -> None:
    """Manage signatures as files, for other programs."""


@signature.command(examples=("lora-reg signature export acme/sql-writer:v3 --key p256.pub.pem -o model.sig",))
@click.argument("ref")
@click.option("--key", "key_file", required=True, metavar="FILE", help="Public key in PEM format.")
@click.option(
    "--format", "signature_format", type=click.Choice(["model-signing", "lora-reg"]), default="model-signing",
    show_default=True, help="A Sigstore bundle for OpenSSF model_signing, or the DSSE envelope of the format lora-reg.",
)  # fmt: skip
@click.option(
    "-o", "target", default="model.sig", show_default=True, metavar="FILE", help="File to write; it is replaced."
)
@pass_state
def export(state: State, ref: str, key_file: str, signature_format: SignatureFormat, target: str) -> None:
    """Write a key's signature of a version to a file.

    The signature is verified first; the exit status is 7 if the key has not signed in this format. `lora-reg sign
    --format model-signing` makes one that `model_signing verify key` accepts for the pulled folder.
    """
    from lora_reg.signature_files import write_signature
    from lora_reg.signing import fetch_subject, load_public_key, need_cryptography, require_signed

    need_cryptography()
    key, path = load_public_key(Path(key_file)), Path(target)
    client = state.client()
    subject = fetch_subject(client, ref)
    (view,) = require_signed(client, subject, [key], signature_format)
    write_signature(path, signature_format, view.envelope, key)
    state.output().result(
        "lora-reg/signature-file/1",
        {"path": str(path), "signature": view},
        human=[f"{subject.label}  {subject.digest.short}  signed by {view.key_id}: {path}"],
        quiet=[str(path)],
    )


@signature.command(
    "import",
    examples=("lora-reg signature import acme/sql-writer:v3 model.sig --key p256.pub.pem",),
)
@click.argument("ref")
@click.argument("file")
@click.option("--key", "key_file", required=True, metavar="FILE", help="Public key in PEM format: Ed25519 or P-256.")
@pass_state
def import_(state: State, ref: str, file: str, key_file: str) -> None:
    """Add a signature that another program made.

    FILE is a Sigstore bundle by `model_signing sign key`, or a DSSE envelope. It must be the key's signature of exactly
    this version, or of exactly its files; otherwise the exit status is 7.
    """
    from lora_reg.signature_files import load_envelope
    from lora_reg.signing import fetch_subject, load_public_key, need_cryptography, verify_envelope

    need_cryptography()
    key, envelope = load_public_key(Path(key_file)), load_envelope(Path(file))
    client = state.client()
    subject = fetch_subject(client, ref)
    verify_envelope(subject, envelope, key)
    view = client.add_signature(subject.reference, envelope, key)
    state.output().result(
        "lora-reg/signature/1",
        view,
        human=[f"{subject.label}  {subject.digest.short}  signed by {view.key_id} ({view.algorithm}, {view.format})"],
        quiet=[view.key_id],
    )


def passphrase(file: str) -> str:
    """The passphrase of an encrypted key, from the environment or the terminal."""
    from lora_contract.errors import RegistryError

    if (given := os.environ.get(PASSPHRASE)) is not None:
        return given
    if not sys.stdin.isatty():
        raise RegistryError(
            "usage",
            f"{file} is encrypted, and there is no terminal to prompt for its passphrase.",
            hint=f"Set it in {PASSPHRASE}.",
        )
    return str(click.prompt(f"Passphrase of {file}", hide_input=True, err=True))
