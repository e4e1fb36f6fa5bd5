"""namespace list, show, set, quota; token list, grants, revoke."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

import click

from lora_contract.roles import VISIBILITIES, check_visibility
from lora_reg.cli.state import LazyGroup, State, pass_state

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Size(click.ParamType[int]):
    """A number of bytes, with a decimal unit: 500MB, 100GB, 2TB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", str(value).strip())
        if not found:
            self.fail(f"{value!r} is not a size; expected for example 500MB or 100GB.", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


if TYPE_CHECKING:
    from lora_contract.wire.access import NamespaceView


@click.group(cls=LazyGroup)
def namespace() -> None:
    """Manage namespaces: who may read them."""


@namespace.command("list", examples=("lora-reg namespace list",))
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Maximum number of namespaces (default: all).")
@pass_state
def list_(state: State, limit: int | None) -> None:
    """List the namespaces that you may read, and your role in each."""
    from lora_reg.formatting.text import table

    found = list(islice(state.client().namespaces(), limit))
    rows = [(view.name, view.visibility, view.role or "-") for view in found]
    state.output().result(
        "lora-reg/namespace-list/1",
        {"items": found},
        human=table(("NAMESPACE", "VISIBILITY", "ROLE"), rows),
        quiet=[view.name for view in found],
    )


@namespace.command(examples=("lora-reg namespace show acme",))
@click.argument("name")
@pass_state
def show(state: State, name: str) -> None:
    """Show who may read a namespace, and your role in it."""
    _print(state, state.client().namespace_view(name))


@namespace.command("set", examples=("lora-reg namespace set default --visibility internal",))
@click.argument("name")
@click.option("--visibility", type=click.Choice(VISIBILITIES), required=True, help="Who may read it.")
@pass_state
def set_(state: State, name: str, visibility: str) -> None:
    """Set who may read a namespace (admin).

    private: whoever has a grant. internal: whoever is signed in. public: everybody.
    """
    _print(state, state.client().set_visibility(name, check_visibility(visibility)))


@namespace.command(examples=("lora-reg namespace quota acme --max-bytes 100GB", "lora-reg namespace quota acme"))
@click.argument("name")
@click.option("--max-bytes", type=Size(), metavar="SIZE", help="Of all files, e.g. 100GB (default: no limit).")
@click.option("--max-versions", type=click.IntRange(0), metavar="N", help="Of all repositories (default: no limit).")
@click.option("--max-jobs", type=click.IntRange(0), metavar="N", help="Queued and running at once (default: no limit).")
@pass_state
def quota(state: State, name: str, max_bytes: int | None, max_versions: int | None, max_jobs: int | None) -> None:
    """Set how much a namespace may hold, and how many jobs it may have at once (administrators of all namespaces).

    A push or a job that would exceed it is refused with exit status 9. What the namespace has already stays.
    """
    _print(state, state.client().set_quota(name, max_bytes=max_bytes, max_versions=max_versions, max_jobs=max_jobs))


@click.group(cls=LazyGroup)
def token() -> None:
    """Manage the tokens of namespaces that you administer.

    Whoever runs the service creates and rotates them, with `lora-registry token`.
    """


@token.command("list", examples=("lora-reg token list",))
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Maximum number of tokens (default: all).")
@pass_state
def list_tokens(state: State, limit: int | None) -> None:
    """List the tokens with a grant in a namespace that you administer, also revoked ones."""
    from lora_reg.formatting.text import table, when

    found = list(islice(state.client().tokens(), limit))
    rows = [
        (
            view.name,
            ", ".join(map(str, view.grants)),
            "revoked" if view.revoked_at else "valid",
            when(view.expires_at) if view.expires_at else "never",
            when(view.last_used_at) if view.last_used_at else "never",
            view.note,
        )
        for view in found
    ]
    state.output().result(
        "lora-reg/token-list/1",
        {"items": found},
        human=table(("TOKEN", "GRANTS", "STATE", "EXPIRES", "LAST USED", "NOTE"), rows),
        quiet=[view.name for view in found],
    )


@token.command(
    "grants", examples=("lora-reg token grants ci --add maintainer:acme", "lora-reg token grants ci --remove acme-old")
)
@click.argument("name")
@click.option("--add", multiple=True, metavar="ROLE:PATTERN", help="Give a grant, or another role; may be repeated.")
@click.option("--remove", multiple=True, metavar="PATTERN", help="Remove the grant of a pattern; may be repeated.")
@pass_state
def change_grants(state: State, name: str, add: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Change the grants of a token in the namespaces that you administer, from its next request on."""
    from lora_contract.errors import RegistryError
    from lora_contract.roles import parse_grant

    if not (add or remove):
        raise RegistryError("usage", "There is nothing to change.", hint="Give --add or --remove.")
    view = state.client().change_grants(name, add=[parse_grant(text) for text in add], remove=remove)
    human = [f"{view.name}  {', '.join(map(str, view.grants)) or 'no grant in your namespaces'}"]
    state.output().result("lora-reg/token/1", view, human=human, quiet=[view.name])


@token.command(examples=("lora-reg token revoke ci",))
@click.argument("name")
@pass_state
def revoke(state: State, name: str) -> None:
    """Remove the grants of a token in the namespaces that you administer.

    A token without other grants is revoked.
    """
    state.client().revoke_token(name)
    state.output().result("lora-reg/token-revoked/1", {"name": name}, human=[f"{name}  revoked"], quiet=[name])


def _print(state: State, view: NamespaceView) -> None:
    from lora_reg.formatting.text import plural, size

    human = [f"{view.name}  {view.visibility}  your role: {view.role or 'none'}"]
    if (usage := view.usage) is not None:
        most = [] if usage.max_bytes is None else [f"of {size(usage.max_bytes)}"]
        held = " ".join([size(usage.bytes), *most])
        most = [] if usage.max_versions is None else [f"of at most {usage.max_versions}"]
        human.append(f"holds {held} in {' '.join([plural(usage.versions, 'version'), *most])}")
        most = [] if usage.max_jobs is None else [f"of at most {usage.max_jobs}"]
        human.append(f"has {' '.join([plural(usage.jobs, 'job'), *most])} queued or running")
    state.output().result("lora-reg/namespace/1", view, human=human, quiet=[view.name])
