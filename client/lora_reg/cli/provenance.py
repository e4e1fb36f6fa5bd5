"""provenance."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lora_reg.cli.state import Command, State, pass_state


@click.command(
    cls=Command,
    examples=("lora-reg provenance acme/both:v1", "lora-reg provenance acme/both:v1 --key key.pem -o both.intoto.json"),
)
@click.argument("ref")
@click.option("--key", "key_file", metavar="FILE", help="Private key in PEM format: write a signed DSSE envelope.")
@click.option("-o", "target", metavar="FILE", help="File to write; it is replaced (default: print it).")
@pass_state
def provenance(state: State, ref: str, key_file: str | None, target: str | None) -> None:
    """Show the provenance of a derived version (in-toto, SLSA).

    An in-toto statement with SLSA provenance v1: the recipe, and the digests of base, inputs, version and files. It is
    compared with the manifest on this machine before it is printed or signed; names and times are as the registry says.
    The exit status is 3 if the version was pushed, not derived.
    """
    import msgspec

    from lora_contract.provenance import check_provenance
    from lora_reg.cli.signatures import passphrase
    from lora_reg.signing import fetch_subject, load_private_key, sign_payload

    key = load_private_key(Path(key_file), lambda: passphrase(key_file)) if key_file is not None else None
    client = state.client()
    subject = fetch_subject(client, ref)
    statement = client.provenance(subject.reference)
    check_provenance(statement, subject.digest, subject.manifest)
    document = msgspec.to_builtins(sign_payload(statement, key)) if key is not None else json.loads(statement)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    output = state.output()
    if target is not None:
        Path(target).write_text(text + "\n", "utf-8")
    elif output.mode == "human":
        output.text(text)
        return
    output.result(
        "lora-reg/provenance/1",
        {"version": str(subject.reference), "path": target, "document": document},
        human=[f"{subject.label}  {subject.digest.short}: {target}"],
        quiet=[target or str(subject.reference)],
    )
