"""push."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_reg.cli.selecting import exclude_options, left_out, with_command
from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.repositories import CommitResult
    from lora_reg.cli.output import Output
    from lora_reg.transfer.push import Pushed


@click.command(
    cls=Command,
    examples=(
        "lora-reg push ./adapter",
        "lora-reg push ./adapter --base llama-2-7b acme/sql-writer --tag candidate",
        "lora-reg push ./adapter --dry-run --exclude '*.csv'",
    ),
)
@click.argument("folder", metavar="DIR")
@click.argument("ref", required=False)
@click.option(
    "--base", metavar="NAME", help="Base that the adapter was trained on (default: the one its config names)."
)
@exclude_options
@click.option("--tag", "tags", multiple=True, metavar="T", help="Tag to set on the version; may be repeated.")
@click.option("--message", "-m", default="", metavar="TEXT", help="Version message.")
@click.option("--meta", multiple=True, metavar="K=V", help="Metadata of the version; may be repeated.")
@click.option(
    "--parent", "parents", multiple=True, metavar="REF", help="Version that training continued from; may be repeated."
)
@click.option("--dry-run", is_flag=True, help="Check only; upload nothing.")
@click.option("--accept-base", is_flag=True, help="Accept --base even if adapter_config.json names a different base.")
@click.option(
    "--prefix",
    metavar="PATH",
    help="Where the base has the model that the adapter was trained on alone, such as model.language_model: its "
    "modules get the base's names.",
)
@pass_state
def push(
    state: State,
    folder: str,
    ref: str | None,
    base: str | None,
    exclude: tuple[str, ...],
    strict: bool,
    tags: tuple[str, ...],
    message: str,
    meta: tuple[str, ...],
    parents: tuple[str, ...],
    dry_run: bool,
    accept_base: bool,
    prefix: str | None,
) -> None:
    """Check an adapter against its base and push it as a new version.

    DIR holds adapter_config.json and adapter_model.safetensors as saved by PEFT. REF is [namespace/]name, optionally
    with a tag to set (default: the name of the folder). Pushing the same content again gives the same version.

    Without --base, the base is the registered one whose name or alias the adapter's config has in
    base_model_name_or_path. What trainers leave in DIR (optimizer states, checkpoints, logs) is left out, and so is
    what DIR/.loraregignore names.
    """
    from lora_contract.errors import RegistryError
    from lora_reg.transfer.push import push_adapter

    try:
        pushed = push_adapter(
            state.client(),
            folder,
            base=base,
            to=ref,
            tags=tags,
            message=message,
            meta=pairs_of(meta),
            parents=parents,
            accept_base=accept_base,
            prefix=prefix,
            exclude=exclude,
            strict=strict,
            dry_run=dry_run,
            progress=state.progress(),
        )
    except RegistryError as error:
        raise with_command(error, state.arguments, folder, ref) from error
    print_pushed(state.output(), "lora-reg/push/1", pushed)


def print_pushed(output: Output, schema: str, pushed: Pushed, *, then: str | None = None) -> None:
    """Print the result of a push, and the command that is likely to come next."""
    from lora_reg.formatting import views
    from lora_reg.formatting.text import fields, plural, size

    output.findings(pushed.findings)
    if pushed.left_out:
        output.note(left_out(pushed.left_out))
    if pushed.base_named is not None:
        output.note(f"base: {pushed.base}, which adapter_config.json names as {pushed.base_named}")
    held = f"{plural(len(pushed.files), 'file')}, {size(pushed.size)}"
    if pushed.result is None:
        output.result(
            schema,
            {
                "dry_run": True,
                "target": pushed.target,
                "files": pushed.files,
                "size": pushed.size,
                "facts": pushed.facts,
                "findings": pushed.findings,
                "left_out": pushed.left_out,
            },
            human=[f"{pushed.target}  can be pushed: {held}; nothing was uploaded"],
            quiet=[pushed.target],
        )
        return
    result = pushed.result
    version = result.version
    name = views.name_of(version)
    output.result(
        schema,
        {
            "dry_run": False,
            "created": result.created,
            "weights_added": result.weights_added,
            "version": version,
            "sent": pushed.sent,
            "job": result.job,
            "findings": pushed.findings,
            "left_out": pushed.left_out,
        },
        human=[
            f"{views.label(version)}  {_outcome(result)}",
            *fields(
                [
                    ("base", views.label(version.base) if version.base else None),
                    ("tags", ", ".join(version.tags)),
                    ("files", f"{held}; {size(pushed.sent)} uploaded"),
                ]
            ),
        ],
        quiet=[name],
    )
    output.next(then or (f"lora-reg pull {name} -o DIR" if version.tags else f"lora-reg tag {name} prod"))


def _outcome(result: CommitResult) -> str:
    if result.weights_added:
        return "now has its weights"
    return "created" if result.created else "exists already"


def pairs_of(meta: tuple[str, ...]) -> dict[str, str]:
    """The pairs of `--meta`. Raises BadParameter."""
    pairs = {}
    for text in meta:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not K=V.", param_hint="--meta")
        pairs[key] = value
    return pairs
