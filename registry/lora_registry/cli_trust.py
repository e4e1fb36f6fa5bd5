"""`lora-registry trust`: rules that let CI jobs, clusters and people in by identity tokens of other issuers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lora_contract.startup import importing
from lora_registry.cli_frame import data_option, exit_on_error, load
from lora_registry.runtime.durations import parse_duration


@click.group()
def trust() -> None:
    """Manage trust rules: whose identity tokens (OpenID Connect) are accepted, with which rights."""


def _keys_options(function: Any) -> Any:
    for option in (
        click.option("--jwks-url", metavar="URL", help="URL of the issuer's keys, if it has no discovery document."),
        click.option(
            "--jwks-file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="File with the issuer's keys, which is stored; nothing is fetched then.",
        ),
        click.option(
            "--ca-bundle",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="File with the certificates (PEM) that the issuer's server is verified with.",
        ),
    ):
        function = option(function)
    return function


@trust.command()
@exit_on_error
@click.argument("name")
@click.option("--grant", "grants", multiple=True, required=True, metavar="ROLE:PATTERN", help="Right that it gives.")
@click.option("--github", metavar="OWNER/REPO", help="A repository of GitHub; needs --repository-id and --owner-id.")
@click.option("--repository-id", help="GitHub's id of the repository.")
@click.option("--owner-id", help="GitHub's id of the owner.")
@click.option("--workflow", metavar="FILE", help="Only jobs that this file of .github/workflows defines.")
@click.option("--gitlab", metavar="GROUP/PROJECT", help="A project of GitLab; needs --project-id and --namespace-id.")
@click.option("--project-id", help="GitLab's id of the project.")
@click.option("--namespace-id", help="GitLab's id of the group or user that owns the project.")
@click.option("--environment", help="Only jobs of this deployment environment.")
@click.option("--ref", metavar="GLOB", help="Only this branch or refs/tags/TAG; * stands for any text.")
@click.option("--kubernetes", metavar="NAMESPACE/ACCOUNT", help="A service account of a cluster; needs --issuer.")
@click.option("--uid", help="Only the service account with this uid, and none that is made again under its name.")
@click.option("--person", is_flag=True, help="People who sign in with `lora-reg login --oidc`.")
@click.option("--group", metavar="GROUP", help="Members of a group (claim `groups`); implies --person.")
@click.option("--issuer", metavar="URL", help="Issuer (`iss`) of the tokens.")
@click.option("--audience", help="Audience (`aud`) of the tokens (default: LORA_REG_OIDC_AUDIENCE).")
@click.option("--claim", "claims", multiple=True, metavar="NAME=VALUE", help="Claim that must have this value.")
@click.option("--life", metavar="TIME", help="Longest life of issued tokens, such as 30m (default: 15m, people 8h).")
@click.option("--pull-requests", is_flag=True, help="Let pipelines of pull requests do more than read.")
@click.option("--note", default="", help="What the rule is for.")
@_keys_options
@data_option
def add(name: str, data: Path | None, **given: Any) -> None:
    """Add a rule. Tokens that match it get its rights.

    A rule must compare ids that never change hands; names can be given to others. docs/identity.md has recipes.
    """
    with importing():
        from lora_registry import admin_trust

    life = given.pop("life")
    request = admin_trust.request(name, seconds=life and int(parse_duration(life)), **given)
    view = admin_trust.add(load(data=data), request)
    click.echo(f"{view.name}: tokens of {view.issuer} for {view.audience!r} get {' '.join(map(str, view.grants))}.")


@trust.command("list")
@exit_on_error
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@data_option
def list_(as_json: bool, data: Path | None) -> None:
    """List the rules in force."""
    with importing():
        import msgspec

        from lora_registry import admin_trust

    views = admin_trust.list_all(load(data=data))
    if as_json:
        document = {"schema": "lora-registry/trust-list/1", "items": msgspec.to_builtins(views)}
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    for view in views:
        click.echo(f"{view.name}  {view.kind}  {' '.join(map(str, view.grants))}  {view.seconds // 60}m")
        click.echo(f"  issuer {view.issuer}, audience {view.audience}")
        for claim, value in sorted(view.claims.items()):
            click.echo(f"  {claim} = {value}")
        if view.pull_requests:
            click.echo("  pull requests may write")
        if view.note:
            click.echo(f"  {' '.join(view.note.split())}")


@trust.command()
@exit_on_error
@click.argument("name")
@data_option
def remove(name: str, data: Path | None) -> None:
    """Remove a rule, and end the tokens that it gave rights."""
    with importing():
        from lora_registry import admin_trust

    admin_trust.remove(load(data=data), name)
    click.echo(f"{name} was removed.")


@trust.command()
@exit_on_error
@click.argument("issuer")
@_keys_options
@data_option
def keys(issuer: str, data: Path | None, **given: Any) -> None:
    """Set where the keys of an issuer are; without an option, where its discovery document says."""
    with importing():
        from lora_registry import admin_trust

    admin_trust.set_keys(load(data=data), issuer, **given)
    click.echo(f"The keys of {issuer} are set.")
