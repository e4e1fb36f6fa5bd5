"""docs/reference/cli.md, from the click commands of both programs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

import click

from docs.generate.markdown import NOTE, anchor, block, document, table

_WIDTH: Final = 120


def page() -> str:
    return document(_lines())


def _lines() -> Iterator[str]:
    from lora_reg.cli.main import cli
    from lora_registry.cli import main as registry

    yield "# Command line"
    yield ""
    yield NOTE
    yield ""
    yield "Two programs: `lora-reg` is the client, `lora-registry` the service. Exit statuses are listed in"
    yield "[errors](errors.md), environment variables in [settings](../settings.md)."
    yield ""
    yield "Every command of `lora-reg` takes the global options, before or after the command:"
    shared = {_option(param, click.Context(cli))[0] for param in cli.params if isinstance(param, click.Option)}
    yield from table(["option", "meaning"], (_option(param, click.Context(cli)) for param in cli.params))
    for program, name in ((cli, "lora-reg"), (registry, "lora-registry")):
        context = click.Context(program, info_name=name)
        yield f"\n## {name}\n"
        yield from _text(program.help or "")
        yield from _contents(program, name)
        for command in program.list_commands(context):
            found = program.get_command(context, command)
            if found is not None and not found.hidden:
                yield from _command(found, context, command, shared)


def _contents(program: click.Group, name: str) -> Iterator[str]:
    """The sections of the program's help, with links to their commands."""
    sections: dict[str, tuple[str, ...]] = getattr(program, "sections", {})
    rows = (
        [heading, ", ".join(f"[{command}](#{anchor(f'{name} {command}')})" for command in commands)]
        for heading, commands in sections.items()
    )
    yield from table(["section", "commands"], rows)


def _command(command: click.Command, parent: click.Context, name: str, shared: set[str]) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=name)
    yield f"\n### {context.command_path}\n"
    yield from _text(command.help or command.short_help or "")
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from _command(found, context, each, shared)
        return
    formatter = click.HelpFormatter(width=_WIDTH)
    command.format_usage(context, formatter)
    yield from block(formatter.getvalue().strip().removeprefix("Usage: "))
    options = [_option(param, context) for param in command.get_params(context)]
    yield from table(["option", "meaning"], (row for row in options if row[1] and row[0] not in shared))
    if examples := getattr(command, "examples", ()):
        yield from block("\n".join(examples))
    yield from _text(command.epilog or "")


def _option(param: click.Parameter, context: click.Context) -> tuple[str, str]:
    """The option with its metavar, and its help; empty for arguments and --help."""
    record = param.get_help_record(context)
    if record is None or "--help" in param.opts:
        return "", ""
    return f"`{record[0]}`", record[1]


def _text(text: str) -> Iterator[str]:
    """Paragraphs. One that click is told not to wrap is a block."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        verbatim = paragraph.startswith("\b")
        lines = paragraph.removeprefix("\b").strip("\n").splitlines()
        if verbatim:
            yield from block(inspect.cleandoc("\n".join(lines)))
        else:
            yield "\n".join(line.strip() for line in lines)
            yield ""
