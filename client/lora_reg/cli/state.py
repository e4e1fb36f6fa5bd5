"""What the global options said, and what commands make of it. Global options stand before or after the subcommand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_reg.cli.output import Output
    from lora_reg.client import Client
    from lora_reg.config import Settings
    from lora_reg.progress import Progress


class State:
    """One run of the program."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self.server: str | None = None
        self.token: str | None = None

    def output(self) -> Output:
        from lora_reg.cli.output import Output

        return Output("json" if self.json else "quiet" if self.quiet else "human")

    def settings(self) -> Settings:
        from lora_reg.config import load_settings

        return load_settings(server=self.server, token=self.token)

    def client(self) -> Client:
        from lora_reg.client import Client

        client = Client(settings=self.settings())
        click.get_current_context().call_on_close(client.close)
        return client

    def progress(self) -> Progress:
        from lora_reg.cli.bar import on_terminal

        return on_terminal(quiet=self.quiet)


pass_state = click.make_pass_decorator(State)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        setattr(context.ensure_object(State), option.name or "", value)


def global_options() -> list[click.Parameter]:
    """--json, --quiet, --server and --token, for a group or a command."""
    return [
        click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_remember, help="One JSON document on stdout."
        ),
        click.Option(["--quiet", "-q"], is_flag=True, expose_value=False, callback=_remember, help="Ids only."),
        click.Option(
            ["--server"], metavar="URL", expose_value=False, callback=_remember, help="The registry to talk to."
        ),
        click.Option(
            ["--token"], metavar="TOKEN", expose_value=False, callback=_remember, help="The token to show it."
        ),
    ]


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used.

    table: name -> (`module:attribute`, the first line of its help), so that listing them imports nothing.
    """

    command_class = Command

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table or {}
        self.params.extend(global_options())

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [*self.table, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module

        module, _, attribute = self.table[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.table:
            super().format_commands(ctx, formatter)
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])
