"""base add, alias, list, resize, show."""

from __future__ import annotations

import click

from lora_contract.errors import RegistryError
from lora_reg.cli.derive import Where, where_options
from lora_reg.cli.selecting import exclude_options, with_command
from lora_reg.cli.state import LazyGroup, State, pass_state


@click.group(cls=LazyGroup)
def base() -> None:
    """Manage base models."""


@base.command(
    examples=(
        "lora-reg base add llama-2-7b ./Llama-2-7b-hf --alias meta-llama/Llama-2-7b-hf",
        "lora-reg base add llama-2-70b ./Llama-2-70b-hf --manifest-only",
        "lora-reg base add llama-3.1-8b hf://meta-llama/Llama-3.1-8B",
    )
)
@click.argument("name")
@click.argument("folder", metavar="DIR")
@click.option("--manifest-only", is_flag=True, help="Register the structure; weights may follow, as the same version.")
@click.option("--weights", is_flag=True, help="Of hf://: fetch the weights too, and upload them.")
@click.option("--endpoint", metavar="URL", help="Hub of hf:// (default: HF_ENDPOINT, or https://huggingface.co).")
@click.option("--source-token-file", metavar="FILE", help="File with the token of the Hub (default: HF_TOKEN).")
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="A",
    help="Name of this base in adapter_config.json, e.g. meta-llama/Llama-2-7b-hf; may be repeated.",
)
@exclude_options
@click.option("--tag", "tags", multiple=True, metavar="T", help="Tag to set on the version; may be repeated.")
@click.option("--message", "-m", default="", metavar="TEXT", help="Version message.")
@pass_state
def add(
    state: State,
    name: str,
    folder: str,
    manifest_only: bool,
    weights: bool,
    endpoint: str | None,
    source_token_file: str | None,
    aliases: tuple[str, ...],
    exclude: tuple[str, ...],
    strict: bool,
    tags: tuple[str, ...],
    message: str,
) -> None:
    """Register a base model from its folder or from a Hub: config, safetensors, tokenizer.

    DIR is a folder in any layout of the Hub: the weights that transformers loads are taken, other formats of them and
    unknown files are left out. Or it is hf://ORG/NAME[@REVISION]: then only the headers of the weights are fetched,
    unless --weights is given, and ORG/NAME becomes an alias. The first job that reads the weights fetches them.

    Adapters are checked against its fingerprint and pinned to it: config, name, shape and dtype of every tensor, and
    the sha256 of every file. The version has the same digest with and without its weights: add it again without
    --manifest-only to upload them.
    """
    from lora_reg.cli.push import print_pushed
    from lora_reg.transfer.push import add_base

    if folder.startswith("hf://"):
        if manifest_only and weights:
            raise click.UsageError("--manifest-only and --weights contradict each other.")
        from lora_reg.cli.hub_bases import add_from_hub

        add_from_hub(state, name, folder, endpoint, source_token_file, weights, aliases, tags, message)
        return
    if weights or endpoint or source_token_file:
        raise click.UsageError("--weights, --endpoint and --source-token-file are for a base on a Hub (hf://).")
    try:
        pushed = add_base(
            state.client(),
            name,
            folder,
            manifest_only=manifest_only,
            aliases=aliases,
            exclude=exclude,
            strict=strict,
            tags=tags,
            message=message,
            progress=state.progress(),
        )
    except RegistryError as error:
        raise with_command(error, state.arguments, folder, name) from error
    print_pushed(state.output(), "lora-reg/base-add/1", pushed, then=f"lora-reg push DIR --base {name}")


@base.command(examples=("lora-reg base alias llama-2-7b meta-llama/Llama-2-7b-hf",))
@click.argument("name")
@click.argument("aliases", nargs=-1, required=True, metavar="A...")
@pass_state
def alias(state: State, name: str, aliases: tuple[str, ...]) -> None:
    """Add an alias (base_model_name_or_path) for this base.

    A push without --base takes the base whose alias the adapter's config has; one with --base checks that it is one.
    """
    from lora_reg.formatting import views

    view = state.client().add_aliases(name, list(aliases))
    state.output().result("lora-reg/repository/1", view, human=views.repository(view), quiet=view.aliases)


@base.command("list", examples=("lora-reg base list",))
@click.argument("pattern", required=False)
@pass_state
def list_(state: State, pattern: str | None) -> None:
    """List base models."""
    from lora_reg.cli.browse import print_repositories

    found = list(state.client().repositories(pattern=pattern, kind="base"))
    print_repositories(state.output(), found, "There are no bases yet.", "lora-reg base add NAME DIR")


@base.command(
    examples=(
        "lora-reg base resize llama-2-7b --vocab 32003 --to llama-2-7b-32003",
        "lora-reg base resize llama-2-7b --vocab 32003 --rows rows.safetensors --to big",
        "lora-reg base resize --local ./Llama-2-7b-hf --vocab 32003 -o ./resized",
    )
)
@click.argument("name", metavar="NAME")
@click.option("--vocab", type=click.IntRange(1), metavar="N", required=True, help="Number of tokens of the result.")
@click.option(
    "--rows",
    metavar="FILE",
    help="Safetensors file with the rows of new tokens, by the names of the base's tensors or those of an adapter that "
    "holds them (default: the mean of the old rows).",
)
@where_options
@pass_state
def resize(state: State, where: Where, name: str, vocab: int, rows: str | None) -> None:
    """Make a base with another number of tokens, for adapters that were trained on a resized vocabulary.

    The embedding and the output layer get or lose rows; all other bytes, and the tokenizer, are those of the base. The
    result is a base of its own: push adapters with `--base` and its name. To resize a folder: --local DIR -o DIR.
    """
    from lora_reg.cli.resize_base import resize_base

    resize_base(state, where, name, vocab, rows)


@base.command(examples=("lora-reg base show llama-2-7b",))
@click.argument("name")
@pass_state
def show(state: State, name: str) -> None:
    """Show a base: its aliases, its versions, and the files of the newest one."""
    from lora_reg.formatting import views

    client = state.client()
    repository, version = client.repository(name), client.version(name)
    if repository.kind != "base":
        raise RegistryError(
            "conflict", f"{repository.namespace}/{repository.name} is of kind {repository.kind}, not base."
        )
    state.output().result(
        "lora-reg/base/1",
        {"repository": repository, "version": version},
        human=[*views.repository(repository), "", *views.version(version)],
        quiet=[views.name_of(version)],
    )
