"""The global options, and the frame of commands and groups: help with examples, suggestions, late imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_contract.reference import Reference
    from lora_reg.cli.output import Output
    from lora_reg.client import Client
    from lora_reg.config import Settings
    from lora_reg.progress import Progress


class State:
    """One run of the program.

    Args:
        arguments: the command line.
        references: those the command has used, in order, for suggestions after `not-found`.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = arguments
        self.json = False
        self.quiet = False
        self.server: str | None = None
        self.token_file: str | None = None
        self.references: list[Reference] = []

    def output(self) -> Output:
        from lora_reg.cli.output import Output

        return Output("json" if self.json else "quiet" if self.quiet else "human")

    def settings(self) -> Settings:
        from lora_reg.config import load_settings

        return load_settings(server=self.server, token_file=self.token_file)

    def client(self) -> Client:
        """A client that is closed when the command ends."""
        from lora_reg.client import Client

        used = self.references

        class Recording(Client):
            def parse(self, text: str | Reference) -> Reference:
                parsed = super().parse(text)
                if parsed not in used:
                    used.append(parsed)
                return parsed

        client = Recording(settings=self.settings())
        click.get_current_context().call_on_close(client.close)
        return client

    def progress(self) -> Progress:
        from lora_reg.cli.bar import on_terminal

        return on_terminal(quiet=self.quiet)


pass_state = click.make_pass_decorator(State)


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        setattr(context.ensure_object(State), option.name or "", value)


def _refuse_secret(_context: click.Context, _option: click.Parameter, value: Any) -> None:
    if value is not None:
        from lora_contract.errors import RegistryError

        raise RegistryError(
            "usage",
            "A token on the command line can be read by every process of the machine.",
            hint="Use --token-file FILE, LORA_REG_TOKEN_FILE, LORA_REG_TOKEN or `lora-reg login`.",
        )


def global_options() -> list[click.Parameter]:
    """--json, --quiet, --server and --token-file, for a group or a command."""
    return [
        click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_remember, help="Print one JSON document on stdout."
        ),
        click.Option(["--quiet", "-q"], is_flag=True, expose_value=False, callback=_remember, help="Print ids only."),
        click.Option(
            ["--server"], metavar="URL", expose_value=False, callback=_remember, help="Registry URL (LORA_REG_SERVER)."
        ),
        click.Option(
            ["--token-file"],
            metavar="FILE",
            expose_value=False,
            callback=_remember,
            help="File with the API token (LORA_REG_TOKEN_FILE; or the token in LORA_REG_TOKEN).",
        ),
        click.Option(
            ["--token"], expose_value=False, callback=_refuse_secret, hidden=True, help="Refused: use --token-file."
        ),
    ]


class Command(click.Command):
    """A command with the global options, and examples at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.extend(global_options())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{example}\n")
        super().format_epilog(ctx, formatter)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used.

    table: name -> (`module:attribute`, the first line of its help), so that listing them imports nothing.
    sections: heading -> names of commands, for the help.
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        table: Mapping[str, tuple[str, str]] | None = None,
        sections: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.table = dict(table or {})
        self.sections = dict(sections or {})
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            close = get_close_matches(name, self.list_commands(ctx), n=3)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {' or '.join(close)}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.table:
            super().format_commands(ctx, formatter)
            return
        width = max(map(len, self.table))
        for heading, names in (self.sections or {"Commands": list(self.table)}).items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), self.table[name][1]) for name in names])
