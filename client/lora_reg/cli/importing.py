"""import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_reg.cli.output import Output
    from lora_reg.importing.run import Row


@click.command(
    "import",
    cls=Command,
    examples=(
        "lora-reg import hf://acme/sql-writer@main --to acme/sql-writer --tag candidate",
        "lora-reg import 'hf://acme?base=meta-llama/Llama-3.1-8B'",
        "lora-reg import s3://models/loras --base llama-3.1-8b",
        "lora-reg import mlflow:sql-writer --to acme",
        "lora-reg import ./adapters --dry-run",
    ),
)
@click.argument("source")
@click.option("--to", metavar="REF", help="NAMESPACE, or NAMESPACE/NAME for one adapter.")
@click.option(
    "--base",
    "bases",
    multiple=True,
    metavar="NAME",
    help="Registered base of the adapters (default: the one that each names); may be repeated.",
)
@click.option("--accept-base", is_flag=True, help="Accept --base even if an adapter names a different base.")
@click.option("--tag", "tags", multiple=True, metavar="T", help="Tag to set on the versions; may be repeated.")
@click.option("--meta", multiple=True, metavar="K=V", help="Metadata of the versions; may be repeated.")
@click.option(
    "--endpoint",
    metavar="URL",
    help="Server to import from (default: HF_ENDPOINT, AWS_ENDPOINT_URL or MLFLOW_TRACKING_URI).",
)
@click.option("--source-token-file", metavar="FILE", help="File with the token of the Hub (default: HF_TOKEN).")
@click.option("--dry-run", is_flag=True, help="List what would come; read configs only, and upload nothing.")
@pass_state
def import_(
    state: State,
    source: str,
    to: str | None,
    bases: tuple[str, ...],
    accept_base: bool,
    tags: tuple[str, ...],
    meta: tuple[str, ...],
    endpoint: str | None,
    source_token_file: str | None,
    dry_run: bool,
) -> int:
    """Import adapters from a Hub, S3, MLflow or folders.

    Each becomes a checked version. SOURCE is hf://ORG/NAME[@REVISION], hf://ORG, hf://?base=ORG/NAME, s3://BUCKET/PREFIX,
    mlflow:[NAME], a folder of adapters or a LoRA file. Adapters of mlx-lm, AdapterHub, kohya and diffusers and PyTorch
    files (.bin) are converted to PEFT's format. Importing again fetches and uploads only what is new; an import that
    was cut off resumes.
    """
    from lora_reg.cli.push import pairs_of
    from lora_reg.importing.run import Options, run
    from lora_reg.importing.source import open_source

    found: list[Row] = []
    options = Options(to, bases, accept_base, tags, pairs_of(meta), dry_run)
    opened = open_source(source, endpoint=endpoint, token_file=source_token_file)
    output = state.output()
    try:
        for row in run(state.client(), opened, options, progress=state.progress()):
            found.append(row)
            output.note(f"{row.outcome}: {row.source}" + (f"  {row.target}" if row.target else ""))
            for note in row.notes:
                output.note(f"note: {note}")
    except KeyboardInterrupt:
        _print(output, found)
        output.say("Interrupted. Run the same command again: it resumes where it stopped.")
        raise click.Abort from None
    finally:
        opened.close()
    _print(output, found)
    return _status(output, source, found)


def _print(output: Output, found: list[Row]) -> None:
    from lora_reg.formatting import imports

    if output.mode == "json" or found:
        output.result(
            "lora-reg/import/1",
            {"rows": found},
            human=imports.rows(found),
            quiet=[row.target for row in found if not row.reason],
        )


def _status(output: Output, source: str, found: list[Row]) -> int:
    """The exit status of the first adapter that did not come. What is no adapter counts if there is nothing else."""
    if not found:
        output.say(f"error: {source} holds no adapter.")
        return 3
    failed = [row for row in found if row.outcome == "failed"]
    if not failed and all(row.outcome == "not an adapter" for row in found):
        failed = found
    for hint in dict.fromkeys(row.hint for row in failed):
        output.say(f"hint: {hint}")
    return failed[0].exit if failed else 0
