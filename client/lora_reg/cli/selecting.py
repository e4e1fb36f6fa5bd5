"""--exclude and --strict, which commands that push a folder share, and what they say of the folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from lora_contract.errors import RegistryError

_SHOWN: Final = 8

F = TypeVar("F", bound=Callable[..., Any])


def exclude_options(command: F) -> F:
    """Add the options `exclude` and `strict`."""
    exclude = click.option(
        "--exclude",
        multiple=True,
        metavar="GLOB",
        help="Files to leave out, as in a .gitignore (DIR/.loraregignore may have more); may be repeated.",
    )
    strict = click.option(
        "--strict", is_flag=True, help="Refuse every file that does not belong to it, by-products too."
    )
    return exclude(strict(command))


def left_out(names: Sequence[str]) -> str:
    """The line that names what was left out."""
    more = len(names) - _SHOWN
    return f"left out: {', '.join(names[:_SHOWN])}" + (f" and {more} more (--json names them)" if more > 0 else "")


def with_command(error: RegistryError, arguments: Sequence[str], folder: str, name: str | None) -> RegistryError:
    """Complete an error about a folder that only holds others with the whole command for the likely one of these.

    name: of the repository that the command named; None: it is to be that of the folder, not of the one inside.
    """
    folders = error.facts.get("folders")
    if not folders or folder not in arguments:
        return error
    place = list(arguments).index(folder)
    own = [Path(folder).resolve().name] if name is None else []
    words = [*arguments[:place], folders[-1], *own, *arguments[place + 1 :]]
    hint = f"Name the one that you mean: `{shlex.join(['lora-reg', *words])}`."
    return RegistryError(error.code, error.detail, hint=hint, **error.facts)
