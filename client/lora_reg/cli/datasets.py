"""dataset add, list, show."""

from __future__ import annotations

import click

from lora_reg.cli.state import LazyGroup, State, pass_state


@click.group(cls=LazyGroup)
def dataset() -> None:
    """Evaluation sets: add, list, show."""


@dataset.command()
@click.argument("name")
@click.argument("file", metavar="FILE")
@click.option("--tag", "tags", multiple=True, metavar="T", help="A tag to set on the version; may be repeated.")
@click.option("--message", "-m", default="", help="A word on this version.")
@pass_state
def add(state: State, name: str, file: str, tags: tuple[str, ...], message: str) -> None:
    """Push an evaluation set as a version.

    FILE is JSON lines, each an object with `text`, or with `prompt` and `completion`.
    """
    from lora_reg.cli.push import tell
    from lora_reg.transfer.push import add_dataset

    pushed = add_dataset(state.client(), name, file, tags=tags, message=message, progress=state.progress())
    then = f"lora-reg validate REF --data {name}"
    tell(state.output(), "lora-reg/dataset-add/1", pushed, then=then)


@dataset.command("list")
@click.argument("pattern", required=False)
@pass_state
def list_(state: State, pattern: str | None) -> None:
    """List the evaluation sets."""
    from lora_reg.cli.browse import tell_repositories

    found = list(state.client().repositories(pattern=pattern, kind="dataset"))
    tell_repositories(state.output(), found, "There is no evaluation set yet.", "lora-reg dataset add NAME FILE")


@dataset.command()
@click.argument("name")
@pass_state
def show(state: State, name: str) -> None:
    """Show an evaluation set: its versions, and how many records of which form there are."""
    from lora_contract.errors import RegistryError
    from lora_reg.formatting import views

    client = state.client()
    repository, version = client.repository(name), client.version(name)
    if repository.kind != "dataset":
        raise RegistryError(
            "conflict", f"{repository.namespace}/{repository.name} is of kind {repository.kind}, not dataset."
        )
    state.output().result(
        "lora-reg/dataset/1",
        {"repository": repository, "version": version},
        human=[*views.repository(repository), "", *views.version(version)],
        quiet=[views.name_of(version)],
    )
