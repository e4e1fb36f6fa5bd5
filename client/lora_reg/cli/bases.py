"""base add, alias, list, show."""

from __future__ import annotations

import click

from lora_reg.cli.state import LazyGroup, State, pass_state


@click.group(cls=LazyGroup)
def base() -> None:
    """Base models: add, alias, list, show."""


@base.command()
@click.argument("name")
@click.argument("folder", metavar="DIR")
@click.option("--manifest-only", is_flag=True, help="Register its structure without uploading its weights.")
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="A",
    help="What trainers call it, e.g. meta-llama/Llama-2-7b-hf; may be repeated.",
)
@click.option("--tag", "tags", multiple=True, metavar="T", help="A tag to set on the version; may be repeated.")
@click.option("--message", "-m", default="", help="A word on this version.")
@pass_state
def add(
    state: State,
    name: str,
    folder: str,
    manifest_only: bool,
    aliases: tuple[str, ...],
    tags: tuple[str, ...],
    message: str,
) -> None:
    """Register a base model from its folder: config, safetensors, tokenizer.

    Its fingerprint (config, every tensor's name, shape and dtype, the sha256 of every file) is what adapters are
    checked against and pinned to.
    """
    from lora_reg.cli.push import tell
    from lora_reg.transfer.push import add_base

    pushed = add_base(
        state.client(),
        name,
        folder,
        manifest_only=manifest_only,
        aliases=aliases,
        tags=tags,
        message=message,
        progress=state.progress(),
    )
    tell(state.output(), "lora-reg/base-add/1", pushed, then=f"lora-reg push DIR --base {name}")


@base.command()
@click.argument("name")
@click.argument("aliases", nargs=-1, required=True, metavar="A...")
@pass_state
def alias(state: State, name: str, aliases: tuple[str, ...]) -> None:
    """Add what trainers write for this base.

    The string in an adapter's config decides nothing by itself; it must be an alias of the base that a push names.
    """
    from lora_reg.formatting import views

    view = state.client().add_aliases(name, list(aliases))
    state.output().result("lora-reg/repository/1", view, human=views.repository(view), quiet=view.aliases)


@base.command("list")
@click.argument("pattern", required=False)
@pass_state
def list_(state: State, pattern: str | None) -> None:
    """List the base models that adapters can be pushed against."""
    from lora_reg.cli.browse import tell_repositories

    found = list(state.client().repositories(pattern=pattern, kind="base"))
    tell_repositories(state.output(), found, "There is no base yet.", "lora-reg base add NAME DIR")


@base.command()
@click.argument("name")
@pass_state
def show(state: State, name: str) -> None:
    """Show a base: its aliases, versions, and what its newest version holds."""
    from lora_contract.errors import RegistryError
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
