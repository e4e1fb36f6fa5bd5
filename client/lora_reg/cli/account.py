"""login, logout, whoami."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.common import Identity


@click.command(
    cls=Command,
    examples=("lora-reg login https://registry.example.com", "lora-reg login URL --token-stdin < token.txt"),
)
@click.argument("url")
@click.option("--token-stdin", is_flag=True, help="Read the token from the first line of stdin.")
@pass_state
def login(state: State, url: str, token_stdin: bool) -> None:
    """Sign in to a registry and make it the default.

    The token is prompted for without echo, or read from --token-file or stdin. It is verified before it is saved, in a
    file that only you can read. For a registry that needs no token, enter an empty one.
    """
    from lora_reg import credentials
    from lora_reg.client import Client
    from lora_reg.config import Settings, check_server, config_folder, read_token

    server = check_server(url)
    token = read_token(Path(state.token_file)) if state.token_file else _ask(server, token_stdin)
    with Client(settings=Settings(server=server, token=token or None)) as client:
        who = client.whoami()
    credentials.store(config_folder(), server, token or None)
    human = [f"Signed in to {server} as {who.name} ({_grants(who)})."]
    state.output().result("lora-reg/login/1", {"server": server, "principal": who}, human=human, quiet=[who.name])


def _ask(server: str, token_stdin: bool) -> str:
    from lora_contract.errors import RegistryError

    if token_stdin:
        return sys.stdin.readline().strip()
    if not sys.stdin.isatty():
        raise RegistryError(
            "usage", "There is no terminal to prompt for the token.", hint="Pipe it in and add --token-stdin."
        )
    answer = click.prompt(f"Token for {server}", hide_input=True, default="", show_default=False, err=True)
    return str(answer).strip()


def _grants(who: Identity) -> str:
    """The roles, and where they apply; an older server sends no grants."""
    grants = [f"{grant.role} in {grant.pattern}" for grant in who.grants]
    return ", ".join(grants) or f"{who.role} in {who.namespace or '*'}"


@click.command(cls=Command, examples=("lora-reg logout",))
@pass_state
def logout(state: State) -> None:
    """Forget the token of a registry."""
    from lora_reg import credentials
    from lora_reg.config import config_folder

    server = state.settings().server
    known = credentials.forget(config_folder(), server)
    human = [f"Signed out of {server}." if known else f"No token is stored for {server}."]
    state.output().result("lora-reg/logout/1", {"server": server, "was_signed_in": known}, human=human, quiet=[server])


@click.command(cls=Command, examples=("lora-reg whoami",))
@pass_state
def whoami(state: State) -> None:
    """Show the authenticated user."""
    client = state.client()
    who = client.whoami()
    note = "  (no token needed)" if who.anonymous else ""
    human = [f"{who.name}  {_grants(who)}  {client.settings.server}{note}"]
    state.output().result(
        "lora-reg/whoami/1", {"server": client.settings.server, "principal": who}, human=human, quiet=[who.name]
    )
