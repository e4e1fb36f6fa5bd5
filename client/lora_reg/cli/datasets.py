"""dataset add, list, show."""

from __future__ import annotations

import click

from lora_reg.cli.state import LazyGroup, State, pass_state


@click.group(cls=LazyGroup)
def dataset() -> None:
    """Manage datasets for evaluation."""


@dataset.command(examples=("lora-reg dataset add acme/sql-eval ./sql_eval.jsonl",))
@click.argument("name")
@click.argument("file", metavar="FILE")
@click.option("--tag", "tags", multiple=True, metavar="T", help="Tag to set on the version; may be repeated.")
@click.option("--message", "-m", default="", metavar="TEXT", help="Version message.")
@pass_state
def add(state: State, name: str, file: str, tags: tuple[str, ...], message: str) -> None:
    """Push a dataset as a version.

    FILE is JSON lines, each an object with `text`, or with `prompt` and `completion`.
    """
    from lora_reg.cli.push import print_pushed
    from lora_reg.transfer.push import add_dataset

    pushed = add_dataset(state.client(), name, file, tags=tags, message=message, progress=state.progress())
    then = f"lora-reg validate REF --data {name}"
    print_pushed(state.output(), "lora-reg/dataset-add/1", pushed, then=then)


@dataset.command("list", examples=("lora-reg dataset list",))
@click.argument("pattern", required=False)
@pass_state
def list_(state: State, pattern: str | None) -> None:
    """List datasets."""
    from lora_reg.cli.browse import print_repositories

    found = list(state.client().repositories(pattern=pattern, kind="dataset"))
    print_repositories(state.output(), found, "There are no datasets yet.", "lora-reg dataset add NAME FILE")


@dataset.command(examples=("lora-reg dataset show acme/sql-eval",))
@click.argument("name")
@pass_state
def show(state: State, name: str) -> None:
    """Show a dataset: its versions, and the number and form of its records."""
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
