"""`lora-registry token` and `lora-registry namespace`: rights, by whoever runs the service."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_contract.errors import RegistryError
from lora_contract.roles import (
    ALL,
    ROLES,
    VISIBILITIES,
    Grant,
    check_pattern,
    check_role,
    check_visibility,
    parse_grant,
)
from lora_contract.startup import importing
from lora_registry.cli_frame import data_option, exit_on_error, load
from lora_registry.runtime.durations import parse_duration

if TYPE_CHECKING:
    from lora_contract.wire.access import TokenView

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the secret to a new file that only you can read.",
)
expires_option = click.option("--expires", metavar="TIME", help="Lifetime, such as 30d or 12h (default: unlimited).")


@click.group()
def token() -> None:
    """Manage API tokens of people, CI and inference servers."""


@token.command()
@exit_on_error
@click.argument("name")
@click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="ROLE:PATTERN",
    help="Role in a namespace or a pattern of them: writer:acme, reader:acme-*, admin:*; may be repeated.",
)
@click.option("--role", type=click.Choice(ROLES), help="Role in --namespace; a short form of one --grant.")
@click.option("--namespace", help="Namespace or pattern of --role (default: *, all namespaces).")
@expires_option
@click.option("--note", default="", metavar="TEXT", help="What the token is for.")
@out_option
@data_option
def create(
    name: str,
    grants: tuple[str, ...],
    role: str | None,
    namespace: str | None,
    expires: str | None,
    note: str,
    out: Path | None,
    data: Path | None,
) -> None:
    """Create a token and print its secret, which is not shown again.

    The roles are reader, writer, maintainer and admin; docs/access.md says what each may do.
    """
    given = [parse_grant(text) for text in grants]
    if role is not None:
        given.append(Grant(check_pattern(ALL if namespace is None else namespace), check_role(role)))
    elif namespace is not None:
        raise RegistryError("usage", "--namespace needs --role.", hint="Or give `--grant ROLE:NAMESPACE`.")
    if not given:
        raise RegistryError("usage", "A token needs a grant.", hint="Give `--grant ROLE:PATTERN`, such as writer:acme.")
    lifetime = None if expires is None else parse_duration(expires)
    with importing():
        from lora_registry import admin

    with _Destination(out) as destination:
        destination.give(admin.create_token(load(data=data), name=name, grants=given, lifetime=lifetime, note=note))


@token.command("list")
@exit_on_error
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@data_option
def list_(as_json: bool, data: Path | None) -> None:
    """List tokens: their grants, when they expire and when they were last used. Secrets are not stored."""
    with importing():
        import msgspec

        from lora_registry import admin

    found = admin.list_tokens(load(data=data))
    if as_json:
        document = {"schema": "lora-registry/token-list/1", "items": msgspec.to_builtins(found)}
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    for view in found:
        click.echo("  ".join(_columns(view)))


@token.command("grants")
@exit_on_error
@click.argument("name")
@click.option("--add", multiple=True, metavar="ROLE:PATTERN", help="Give a grant, or another role; may be repeated.")
@click.option("--remove", multiple=True, metavar="PATTERN", help="Remove the grant of a pattern; may be repeated.")
@click.option(
    "--set", "exact", multiple=True, metavar="ROLE:PATTERN", help="Have exactly these grants; may be repeated."
)
@data_option
def grants_(
    name: str, add: tuple[str, ...], remove: tuple[str, ...], exact: tuple[str, ...], data: Path | None
) -> None:
    """Change what a token may do, from its next request on. Its secret stays."""
    if not (add or remove or exact):
        raise RegistryError("usage", "There is nothing to change.", hint="Give --add, --remove or --set.")
    with importing():
        from lora_contract.wire.access import GrantsRequest
        from lora_registry import admin

    request = GrantsRequest(
        add=[parse_grant(text) for text in add],
        remove=list(remove),
        replace=[parse_grant(text) for text in exact] or None,
    )
    view = admin.change_grants(load(data=data), name, request)
    click.echo(f"{view.name}  {','.join(map(str, view.grants))}", err=True)


@token.command()
@exit_on_error
@click.argument("name")
@data_option
def revoke(name: str, data: Path | None) -> None:
    """Revoke a token: it is refused from now on. Its name is not reused, since the audit log has it."""
    with importing():
        from lora_registry import admin

    admin.revoke_token(load(data=data), name)
    click.echo(f"{name}  revoked", err=True)


@token.command()
@exit_on_error
@click.argument("name")
@click.option("--overlap", metavar="TIME", help="How long the old secret stays valid, such as 1h (default: 0).")
@click.option("--expires", metavar="TIME", help="New lifetime from now on, such as 30d (default: as before).")
@out_option
@data_option
def rotate(name: str, overlap: str | None, expires: str | None, out: Path | None, data: Path | None) -> None:
    """Give a token a new secret and print it. Its name, grants and note stay."""
    seconds = 0.0 if overlap is None else parse_duration(overlap)
    lifetime = None if expires is None else parse_duration(expires)
    with importing():
        from lora_registry import admin

    with _Destination(out) as destination:
        destination.give(admin.rotate_token(load(data=data), name, overlap=seconds, lifetime=lifetime))


@click.group()
def namespace() -> None:
    """Manage namespaces: who may read them."""


@namespace.command("set")
@exit_on_error
@click.argument("name")
@click.option("--visibility", type=click.Choice(VISIBILITIES), required=True, help="Who may read it.")
@data_option
def set_(name: str, visibility: str, data: Path | None) -> None:
    """Set who may read a namespace, which need not have a repository yet.

    private: whoever has a grant. internal: whoever is signed in. public: everybody.
    """
    with importing():
        from lora_registry import admin

    admin.set_visibility(load(data=data), name, check_visibility(visibility))
    click.echo(f"{name}  {visibility}", err=True)


class _Destination:
    """stdout, or a new file of mode 0600, which is created before the secret is: no secret is lost to a bad path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._given = False

    def __enter__(self) -> _Destination:
        if self._path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.open(self._path, flags, 0o600)
        return self

    def give(self, secret: str) -> None:
        if self._path is None:
            click.echo(secret)
        else:
            os.write(self._file, f"{secret}\n".encode())
            click.echo(f"The secret is in {self._path}.", err=True)
        self._given = True

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            os.close(self._file)
            if not self._given:
                self._path.unlink()


def _columns(view: TokenView) -> list[str]:
    state = f"revoked {_minute(view.revoked_at)}" if view.revoked_at else f"expires {_minute(view.expires_at)}"
    return [
        view.name,
        ",".join(map(str, view.grants)),
        f"created {_minute(view.created_at)}",
        state,
        f"last used {_minute(view.last_used_at)}",
        view.note,
    ]


def _minute(at: str | None) -> str:
    """A time as people read it, in UTC; `--json` has it in full."""
    return "never" if at is None else at[:16].replace("T", " ")
