"""tag, tags, untag, rollback, protect, unprotect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from lora_contract.errors import RegistryError
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.formatting import views

if TYPE_CHECKING:
    from lora_contract.reference import Reference
    from lora_reg.client import Client

_EXPECT = "Move the tag only if it points to REF now (`none`: only if the tag does not exist)."
_LOOKS_LIKE_SELECTOR = re.compile(r"v[1-9][0-9]*\Z|sha256:[0-9a-f]{64}\Z|latest\Z")


@click.command(cls=Command, examples=("lora-reg tags acme/sql-writer",))
@click.argument("name")
@pass_state
def tags(state: State, name: str) -> None:
    """List the tags of a repository."""
    client, output = state.client(), state.output()
    ref = client.parse(name)
    found = client.tags(ref).items
    if not found:
        output.note(f"{ref.repository} has no tags.")
    output.result(
        "lora-reg/tag-list/1",
        {"items": found},
        human=views.tags(found),
        quiet=[f"{view.namespace}/{view.name}:{view.tag}" for view in found],
    )


@click.command(
    cls=Command,
    examples=(
        "lora-reg tag acme/sql-writer:v3 prod",
        "lora-reg tag acme/sql-writer:v3 prod --expect v2 --reason 'fewer errors'",
        "lora-reg tags acme/sql-writer  # list them",
    ),
)
@click.argument("ref")
@click.argument("name", metavar="TAG")
@click.option("--expect", metavar="REF", help=_EXPECT)
@click.option("--reason", default="", metavar="TEXT", help="Reason, kept in the history.")
@pass_state
def tag(state: State, ref: str, name: str, expect: str | None, reason: str) -> None:
    """Point a tag at a version.

    A tag moves by compare-and-swap: with --expect it moves only if no one else has moved it. `lora-reg tags NAME` lists
    tags.
    """
    client = state.client()
    if ref == "list" and "/" in name:
        raise RegistryError("usage", f"{name!r} is not a tag.", hint=f"List its tags with `lora-reg tags {name}`.")
    target = client.parse(ref)
    generation = expected_generation(client, target, name, expect)
    moved = client.set_tag(
        target, name, target.selector(), reason=reason, generation=generation or None, create=generation == 0
    )
    output = state.output()
    output.result(
        "lora-reg/tag/1", moved, human=[views.tag(moved)], quiet=[f"{moved.namespace}/{moved.name}:{moved.tag}"]
    )
    output.next(f"lora-reg pull {moved.namespace}/{moved.name}:{moved.tag}")


@click.command(cls=Command, examples=("lora-reg untag acme/sql-writer:candidate",))
@click.argument("name", metavar="NAME:TAG")
@click.option("--expect", metavar="REF", help="Remove the tag only if it points to REF now.")
@pass_state
def untag(state: State, name: str, expect: str | None) -> None:
    """Remove a tag; its history is kept."""
    client = state.client()
    ref, wanted = _tagged(client, name)
    client.remove_tag(ref, wanted, generation=None if expect is None else _generation(client, ref, wanted, expect))
    text = f"{ref.repository}:{wanted}"
    state.output().result("lora-reg/untag/1", {"removed": text}, human=[f"{text} removed"], quiet=[text])


@click.command(
    cls=Command, examples=("lora-reg rollback acme/sql-writer:prod", "lora-reg rollback acme/sql-writer:prod --to v2")
)
@click.argument("name", metavar="NAME:TAG")
@click.option("--to", metavar="REF", help="Version to return to (default: the previous target of the tag).")
@click.option("--reason", default="", metavar="TEXT", help="Reason, kept in the history.")
@pass_state
def rollback(state: State, name: str, to: str | None, reason: str) -> None:
    """Point a tag back at the version before."""
    client = state.client()
    ref, wanted = _tagged(client, name)
    present = client.tag(ref, wanted)
    selector = None if to is None else _selector(client, ref, to)
    moved = client.rollback(ref, wanted, to=selector, reason=reason, generation=present.generation)
    state.output().result(
        "lora-reg/tag/1",
        moved,
        human=[f"{views.tag(moved)}  (was v{present.version.number})"],
        quiet=[f"{moved.namespace}/{moved.name}:{moved.tag}"],
    )


@click.command(cls=Command, examples=("lora-reg protect acme/sql-writer:prod",))
@click.argument("name", metavar="NAME:TAG")
@pass_state
def protect(state: State, name: str) -> None:
    """Protect a tag: it moves only with --expect.

    The caller must name the present target: `lora-reg tag REF TAG --expect REF`.
    """
    _protect(state, name, True)


@click.command(cls=Command, examples=("lora-reg unprotect acme/sql-writer:prod",))
@click.argument("name", metavar="NAME:TAG")
@pass_state
def unprotect(state: State, name: str) -> None:
    """Remove the protection of a tag."""
    _protect(state, name, False)


def _protect(state: State, name: str, protected: bool) -> None:
    client = state.client()
    ref, wanted = _tagged(client, name)
    view = client.protect(ref, wanted, protected)
    text = f"{view.namespace}/{view.name}:{view.tag}"
    state.output().result("lora-reg/tag/1", view, human=[views.tag(view)], quiet=[text])


def _tagged(client: Client, name: str) -> tuple[Reference, str]:
    ref = client.parse(name)
    if ref.tag is None or ref.digest is not None:
        raise RegistryError("usage", f"{name!r} does not name a tag; expected NAME:TAG.")
    return ref, ref.tag


def _selector(client: Client, repository: Reference, text: str) -> str:
    """The selector that text means in `repository`: `v2`, a digest, or a reference into the same repository."""
    if _LOOKS_LIKE_SELECTOR.match(text):
        return text
    ref = client.parse(text)
    if ref.is_bare and "/" not in text and ":" not in text:
        return text if ref.name.lower() != repository.name.lower() else "latest"
    if ref.repository.lower() != repository.repository.lower():
        raise RegistryError(
            "usage", f"{text!r} is not in {repository.repository}; a tag points into its own repository."
        )
    return ref.selector()


def expected_generation(client: Client, repository: Reference, tag: str, expect: str | None) -> int | None:
    """The generation that `--expect` requires: 0 if the tag must not exist, None if any will do. Raises `tag-moved`."""
    if expect is None or expect == "none":
        return None if expect is None else 0
    return _generation(client, repository, tag, expect)


def _generation(client: Client, repository: Reference, tag: str, expect: str) -> int:
    """The generation of a tag that points to `expect` now. Raises `tag-moved` if it points elsewhere."""
    present = client.tag(repository, tag)
    selector = _selector(client, repository, expect)
    expected = client.version(f"{repository.repository}{'@' if selector.startswith('sha256:') else ':'}{selector}")
    if present.version.digest != expected.digest:
        raise RegistryError(
            "tag-moved",
            f"{repository.repository}:{tag} points to v{present.version.number}, not to v{expected.number}.",
            current=present,
        )
    return present.generation
