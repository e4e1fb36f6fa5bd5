"""sign, verify."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from lora_reg.cli.state import Command, State, pass_state

PASSPHRASE: Final = "LORA_REG_KEY_PASSPHRASE"


@click.command(cls=Command, examples=("lora-reg sign acme/sql-writer:v3 --key key.pem --dir ./adapter",))
@click.argument("ref")
@click.option("--key", "key_file", required=True, metavar="FILE", help="Private key in PEM format: Ed25519 or P-256.")
@click.option(
    "--dir", "folder", metavar="DIR", help="Sign only if the files of the version equal those in this folder."
)
@pass_state
def sign(state: State, ref: str, key_file: str, folder: str | None) -> None:
    """Sign a version with a private key.

    The signature covers the name of the repository and the digest of the version, which covers its files and its base.
    The passphrase of an encrypted key is prompted for, or taken from LORA_REG_KEY_PASSPHRASE. `openssl genpkey
    -algorithm ed25519 -aes256 -out KEY.pem` makes a key, and `openssl pkey -in KEY.pem -pubout -out PUB.pem` its public
    half.
    """
    from lora_reg.signing import fetch_subject, load_private_key, make_envelope, public_half, require_same_files

    key = load_private_key(Path(key_file), lambda: _passphrase(key_file))
    client = state.client()
    subject = fetch_subject(client, ref)
    if folder is not None:
        require_same_files(subject, Path(folder))
    view = client.add_signature(subject.reference, make_envelope(subject, key), public_half(key))
    output = state.output()
    output.result(
        "lora-reg/signature/1",
        view,
        human=[f"{subject.label}  {subject.digest.short}  signed by {view.key_id} ({view.algorithm})"],
        quiet=[view.key_id],
    )
    output.next(f"lora-reg verify {subject.label} --key PUB.pem")


@click.command(cls=Command, examples=("lora-reg verify acme/sql-writer:v3 --key pub.pem",))
@click.argument("ref")
@click.option(
    "--key", "key_files", required=True, multiple=True, metavar="FILE",
    help="Public key in PEM format; may be repeated, and each must have signed.",
)  # fmt: skip
@pass_state
def verify(state: State, ref: str, key_files: tuple[str, ...]) -> None:
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
    found = require_signed(client, subject, keys)
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


def _passphrase(file: str) -> str:
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
