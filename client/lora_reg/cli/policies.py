"""policy set, remove, show, test."""

from __future__ import annotations

import tomllib
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_reg.cli.state import LazyGroup, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.gates import GateView, PolicyView
    from lora_reg.client import Client


@click.group(cls=LazyGroup)
def policy() -> None:
    """Manage policies: what a version must show before a tag may move."""


@policy.command("set", examples=("lora-reg policy set 'acme/*:prod' policy.toml",))
@click.argument("pattern", metavar="PATTERN")
@click.argument("file", metavar="FILE")
@pass_state
def set_(state: State, pattern: str, file: str) -> None:
    """Set the policy of all tags that match a pattern, such as acme/*:prod.

    FILE is TOML or JSON. If several patterns match a tag, the most specific one governs it. A governed tag moves only
    with `promote`.
    """
    _print(state, state.client().set_policy(pattern, read(Path(file))))


@policy.command(examples=("lora-reg policy remove 'acme/*:prod'",))
@click.argument("pattern", metavar="PATTERN")
@pass_state
def remove(state: State, pattern: str) -> None:
    """Remove the policy of a pattern; its history is kept."""
    view = state.client().set_policy(pattern, None)
    state.output().result("lora-reg/policy/1", view, human=[f"{pattern}  removed"], quiet=[pattern])


@policy.command(examples=("lora-reg policy show", "lora-reg policy show 'acme/*:prod'"))
@click.argument("pattern", metavar="[PATTERN]", required=False)
@pass_state
def show(state: State, pattern: str | None) -> None:
    """Show the policies in force; with a pattern, all its versions, newest first."""
    import json

    from lora_reg.formatting.text import short, table, when

    found = state.client().policies(pattern=pattern).items
    output = state.output()
    if not found:
        output.note(
            f"{pattern} has never had a policy." if pattern else "No policies are set; gates use the default policy."
        )
    rows = [
        (
            view.pattern,
            f"{view.number}",
            (view.document or {}).get("name", "removed"),
            short(view.digest or "-"),
            view.author,
            when(view.created_at),
        )
        for view in found
    ]
    documents = [json.dumps(found[0].document, indent=2)] if pattern and found and found[0].document else []
    output.result(
        "lora-reg/policy-list/1",
        {"items": found},
        human=[
            *table(("PATTERN", "NUMBER", "NAME", "DIGEST", "BY", "WHEN"), rows),
            *(line for text in documents for line in text.splitlines()),
        ],
        quiet=[view.pattern for view in found],
    )


@policy.command(examples=("lora-reg policy test policy.toml acme/sql-writer --run",))
@click.argument("file", metavar="FILE")
@click.argument("ref")
@click.option("--for", "tag", default="prod", show_default=True, metavar="TAG", help="Tag to test for.")
@click.option("--data", multiple=True, metavar="REF", help="Additional dataset to evaluate on; may be repeated.")
@click.option(
    "--last",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of versions if REF is a bare NAME.",
)
@click.option("--run", is_flag=True, help="Run missing validations.")
@pass_state
def test(state: State, file: str, ref: str, tag: str, data: tuple[str, ...], last: int, run: bool) -> None:
    """Test a policy on existing versions, without storing anything or moving a tag.

    A bare NAME means its newest versions. Each is compared with the version that the tag points to now.
    """
    from lora_reg.formatting.text import Word, table

    client = state.client()
    document = read(Path(file))
    parsed = client.parse(ref)
    if parsed.is_bare:
        names = [f"{view.namespace}/{view.name}@{view.digest}" for view in islice(client.versions(parsed), last)]
    else:
        names = [str(parsed)]
    found = [_tried(state, client, name, tag, data, document, run) for name in names]
    words = {True: Word("allowed", "good"), False: Word("refused", "bad"), None: Word("not measured", "warning")}
    output = state.output()
    output.result(
        "lora-reg/policy-test/1",
        {"items": found},
        human=table(
            ("VERSION", "DECISION", "REASON"), [(f"v{view.number}", words[view.allowed], view.reason) for view in found]
        ),
        quiet=[f"{view.namespace}/{view.name}:v{view.number}" for view in found if view.allowed],
    )
    if any(view.allowed is None for view in found):
        output.note("Add --run to run missing validations.")


def read(path: Path) -> dict[str, Any]:
    """Read a policy document. Raises RegistryError `invalid-request` if the file is neither JSON nor TOML."""
    from lora_contract import canonical
    from lora_contract.errors import RegistryError

    text = path.read_bytes()
    if path.suffix == ".json":
        found = canonical.loads_strict(text, what=path.name, max_bytes=1 << 20)
    else:
        try:
            found = tomllib.loads(text.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RegistryError("invalid-request", f"{path.name} is not valid TOML: {error}.") from error
    if not isinstance(found, dict):
        raise RegistryError("invalid-request", f"{path.name} is not a policy: expected an object.")
    return found


def _tried(
    state: State, client: Client, name: str, tag: str, data: tuple[str, ...], document: dict[str, Any], run: bool
) -> GateView:
    from lora_reg.cli.jobs import watch
    from lora_reg.waiting import until_decided

    def ask() -> GateView:
        return client.gate(name, tag, data=data, document=document, start=run)

    return until_decided(ask, lambda answer: answer, partial(watch, state, client))


def _print(state: State, view: PolicyView) -> None:
    name = (view.document or {}).get("name", "")
    state.output().result(
        "lora-reg/policy/1",
        view,
        human=[f"{view.pattern}  policy {name}, number {view.number}  {(view.digest or '')[:19]}"],
        quiet=[view.pattern],
    )
