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
    examples=(
        "lora-reg login https://registry.example.com --oidc",
        "lora-reg login https://registry.example.com",
        "lora-reg login URL --token-stdin < token.txt",
    ),
)
@click.argument("url")
@click.option("--token-stdin", is_flag=True, help="Read the token from the first line of stdin.")
@click.option("--oidc", is_flag=True, help="Sign in at your organization's OpenID provider, in a browser.")
@click.option("--device", is_flag=True, help="With --oidc: show a code to enter in a browser on any device.")
@pass_state
def login(state: State, url: str, token_stdin: bool, oidc: bool, device: bool) -> None:
    """Sign in to a registry and make it the default.

    The token is prompted for without echo, or read from --token-file or stdin. It is verified before it is saved, in a
    file that only you can read. For a registry that needs no token, enter an empty one.

    With --oidc, sign in at the OpenID provider that the registry names; the token that you get expires after some
    hours. Without a browser on this machine, as over SSH, a code is shown to enter elsewhere.
    """
    from lora_contract.errors import RegistryError
    from lora_reg import credentials
    from lora_reg.client import Client
    from lora_reg.config import Settings, check_server, config_folder, read_token

    server = check_server(url)
    if oidc or device:
        if token_stdin or state.token_file:
            raise RegistryError("usage", "A token and --oidc are given; expected one of them.")
        token = _by_provider(state, server, device=device)
    else:
        token = read_token(Path(state.token_file)) if state.token_file else _ask(server, token_stdin)
    with Client(settings=Settings(server=server, token=token or None)) as client:
        who = client.whoami()
    credentials.store(config_folder(), server, token or None, issued=oidc or device)
    human = [f"Signed in to {server} as {who.name} ({_grants(who)})."]
    state.output().result("lora-reg/login/1", {"server": server, "principal": who}, human=human, quiet=[who.name])


def _by_provider(state: State, server: str, *, device: bool) -> str:
    """Sign a person in, and return a token of the registry."""
    import webbrowser

    from lora_reg import identity, sign_in
    from lora_reg.transport import Transport

    say = state.output().say
    transport = Transport(server)
    try:
        options = identity.login_options(transport)
        provider = sign_in.Provider(options)
        try:
            if provider.has_device_flow and (device or not sign_in.can_open_browser()):
                token = provider.by_device(say)
            else:
                token = provider.by_browser(say, webbrowser.open)
        finally:
            provider.close()
        return identity.exchange(transport, token, host=sign_in.host_name()).token
    finally:
        transport.close()


@click.command("ci-token", cls=Command, examples=("lora-reg ci-token", "lora-reg ci-token --json"))
@pass_state
def ci_token(state: State) -> None:
    """Exchange the identity token of a CI job for a token of the registry.

    The token is printed. In GitHub Actions every command exchanges one by itself if no token is set. An identity token
    in LORA_REG_ID_TOKEN, as GitLab provides it, is exchanged once: keep the result in LORA_REG_TOKEN for the commands
    that follow.
    """
    import os

    from lora_contract.errors import RegistryError
    from lora_reg import identity

    server = state.settings().server
    issued = identity.issue(server, os.environ)
    if issued is None:
        raise RegistryError(
            "conflict", f"{server} needs no token: it has no login.", hint="Run the commands without a token."
        )
    state.output().result("lora-reg/ci-token/1", issued, human=[issued.token], quiet=[issued.token])


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
    """Forget the token of a registry.

    A token that `login --oidc` got is also revoked. One that you entered stays valid: other programs may use it.
    """
    from lora_reg import credentials
    from lora_reg.config import config_folder

    server = state.settings().server
    stored = credentials.read(config_folder())
    token, issued = stored.token(server), stored.is_issued(server)
    known = credentials.forget(config_folder(), server)
    human = [f"Signed out of {server}." if known else f"No token is stored for {server}."]
    revoked = False
    if token is not None and issued:
        revoked, told = _end(server, token)
        human.append(told)
    elif token is not None:
        human.append("The token that you entered stays valid; `lora-reg token revoke` or whoever made it revokes it.")
    document = {"server": server, "was_signed_in": known, "revoked": revoked}
    state.output().result("lora-reg/logout/1", document, human=human, quiet=[server])


def _end(server: str, token: str) -> tuple[bool, str]:
    """End a token that a sign-in got: whether it is refused from now on, and how it went."""
    from lora_contract.errors import RegistryError
    from lora_reg import identity

    try:
        if identity.sign_out(server, token):
            return True, "Its token was revoked."
        return False, "Its token was not valid any more."
    except RegistryError as error:
        return False, f"Its token could not be revoked, and stays valid until it expires: {error.detail}"


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
