"""The `lora-reg` program. Importing this module imports click and nothing heavier."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from lora_contract import __version__
from lora_reg.cli.state import LazyGroup, State

if TYPE_CHECKING:
    from lora_contract.errors import RegistryError

INTERRUPTED: Final = 130

_HERE: Final = "lora_reg.cli"
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "login": (f"{_HERE}.account:login", "Sign in to a registry and make it the one that commands talk to."),
    "logout": (f"{_HERE}.account:logout", "Forget the token of a registry."),
    "whoami": (f"{_HERE}.account:whoami", "Show who the registry takes you for."),
    "base": (f"{_HERE}.bases:base", "Base models: add, alias, list, show."),
    "dataset": (f"{_HERE}.datasets:dataset", "Evaluation sets: add, list, show."),
    "push": (f"{_HERE}.push:push", "Check an adapter against its base and push it as a version."),
    "pull": (f"{_HERE}.pull:pull", "Get a version into a folder or into the cache."),
    "list": (f"{_HERE}.browse:list_", "List repositories."),
    "show": (f"{_HERE}.browse:show", "Show a version: its files, base, tags and facts."),
    "history": (f"{_HERE}.browse:history", "Show a repository's versions and the moves of its tags, newest first."),
    "lineage": (f"{_HERE}.lineage:lineage", "Show what a version was made from and what was made from it."),
    "diff": (
        f"{_HERE}.diff:diff",
        "Show what changed between two adapters: files, config, losses, and every module from its factors.",
    ),
    "reproduce": (
        f"{_HERE}.diff:reproduce",
        "Derive a version again from its lineage and compare digests; exit 7 where they differ.",
    ),
    "report": (f"{_HERE}.browse:report", "Show what validations found out about a version."),
    "tag": (f"{_HERE}.tags:tag", "Point a tag at a version."),
    "untag": (f"{_HERE}.tags:untag", "Remove a tag; its history stays."),
    "rollback": (f"{_HERE}.tags:rollback", "Point a tag back at the version before."),
    "protect": (f"{_HERE}.tags:protect", "Let a tag move only when the version it points to is named."),
    "unprotect": (f"{_HERE}.tags:unprotect", "Let a tag move freely again."),
    "delete": (f"{_HERE}.versions:delete", "Delete a version, or a whole repository, for good."),
    "yank": (f"{_HERE}.versions:yank", "Warn everybody off a version, without removing it."),
    "unyank": (f"{_HERE}.versions:unyank", "Take a yank back."),
    "merge": (f"{_HERE}.merge:merge", "Merge adapters into their base, by a job or on this machine."),
    "compose": (f"{_HERE}.compose:compose", "Compose adapters of one base into one adapter."),
    "extract": (f"{_HERE}.extract:extract", "Make an adapter of the difference between a fine-tune and its base."),
    "resize": (f"{_HERE}.resize:resize", "Bring an adapter to another rank, or make it plain LoRA."),
    "validate": (
        f"{_HERE}.validate:validate",
        "Validate an adapter on its base and judge it by a policy; exit 6 where it is refused.",
    ),
    "policy": (f"{_HERE}.policies:policy", "What a version must show before a tag may move: set, lift, show, test."),
    "gate": (f"{_HERE}.gates:gate", "Ask whether a version may have a tag; exit 6 where it may not."),
    "approve": (f"{_HERE}.gates:approve", "Give your word that a version may have a tag."),
    "promote": (f"{_HERE}.gates:promote", "Gate a version and point the tag at it, in one transaction."),
    "sign": (f"{_HERE}.signatures:sign", "Sign a version with a private key."),
    "verify": (f"{_HERE}.signatures:verify", "Check that a key has signed a version; exit 7 where it has not."),
    "job": (f"{_HERE}.jobs:job", "Jobs: list, show, logs, cancel, retry, wait."),
}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A reference is [namespace/]name[:tag or :vN][@sha256:...]. Settings: LORA_REG_SERVER, LORA_REG_TOKEN, "
    "LORA_REG_NAMESPACE, LORA_REG_CACHE, LORA_REG_OFFLINE. Exit status: 0 done, 1 failure, 2 usage, 3 not found, "
    "4 not allowed, 5 conflict, 6 refused by a check, 7 integrity, 8 still pending, 9 rate or quota, 10 unavailable.",
)
@click.version_option(__version__, prog_name="lora-reg", message="%(prog)s %(version)s")
def cli() -> None:
    """The registry between LoRA training and LoRA inference."""


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status."""
    from lora_contract.errors import RegistryError

    state = State()
    try:
        status = cli.main(list(arguments), prog_name="lora-reg", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        state.json = state.json or "--json" in arguments
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "lora-reg"
        failure = RegistryError("usage", error.format_message(), hint=f"See `{path} --help`.")
    except RegistryError as error:
        failure = error
    except BrokenPipeError:
        # The reader of our output has seen enough. Keep the interpreter from saying so once more at its end.
        sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115
        return 1
    except ModuleNotFoundError as error:
        failure = _missing_package(error)
    except OSError as error:
        failure = RegistryError(
            "local-io", f"{error.strerror or type(error).__name__}: {error.filename or 'on this machine'}."
        )
    return state.output().problem(failure)


def _missing_package(error: ModuleNotFoundError) -> RegistryError:
    """The base install has no numpy or torch, and kernels import them late. Raises `error` if the module is ours."""
    from lora_contract.errors import RegistryError

    if not error.name or error.name.startswith("lora_"):
        raise error
    return RegistryError(
        "usage",
        f"This command needs the Python package {error.name.partition('.')[0]}, which is not installed.",
        hint="Install lora-reg with the extra `worker`.",
    )


if __name__ == "__main__":
    main()
