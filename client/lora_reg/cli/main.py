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
    "push": (f"{_HERE}.push:push", "Check an adapter against its base and push it as a new version."),
    "import": (
        f"{_HERE}.importing:import_",
        "Import adapters from a Hub, S3, MLflow or folders.",
    ),
    "pull": (f"{_HERE}.pull:pull", "Download a version into a folder or into the cache."),
    "list": (f"{_HERE}.browse:list_", "List repositories."),
    "show": (f"{_HERE}.browse:show", "Show a version: its files, base, tags and facts."),
    "validate": (f"{_HERE}.validate:validate", "Validate an adapter on its base and judge it by a policy."),
    "report": (f"{_HERE}.report:report", "Show what validations measured, and the verdict of the policy."),
    "diff": (f"{_HERE}.diff:diff", "Compare two adapters: files, config, losses and modules."),
    "merge": (f"{_HERE}.merge:merge", "Merge adapters into their base."),
    "compose": (f"{_HERE}.compose:compose", "Compose adapters of one base into one adapter."),
    "extract": (f"{_HERE}.extract:extract", "Extract an adapter from a fine-tune and its base."),
    "resize": (f"{_HERE}.resize:resize", "Change the rank of an adapter, or convert it to plain LoRA."),
    "lineage": (f"{_HERE}.lineage:lineage", "Show what a version was made from and what was made from it."),
    "reproduce": (f"{_HERE}.diff:reproduce", "Run the recipe of a version again and compare digests."),
    "provenance": (f"{_HERE}.provenance:provenance", "Show the provenance of a derived version (in-toto, SLSA)."),
    "history": (f"{_HERE}.browse:history", "Show the versions of a repository and the moves of its tags."),
    "tags": (f"{_HERE}.tags:tags", "List the tags of a repository."),
    "tag": (f"{_HERE}.tags:tag", "Point a tag at a version."),
    "untag": (f"{_HERE}.tags:untag", "Remove a tag; its history is kept."),
    "rollback": (f"{_HERE}.tags:rollback", "Point a tag back at the version before."),
    "protect": (f"{_HERE}.tags:protect", "Protect a tag: it moves only with --expect."),
    "unprotect": (f"{_HERE}.tags:unprotect", "Remove the protection of a tag."),
    "yank": (f"{_HERE}.versions:yank", "Yank a version: it stays, but pulls of it print a warning."),
    "unyank": (f"{_HERE}.versions:unyank", "Undo a yank."),
    "delete": (f"{_HERE}.versions:delete", "Delete a version or a repository."),
    "undelete": (f"{_HERE}.versions:undelete", "Restore a deleted version while its bytes are kept."),
    "retention": (f"{_HERE}.versions:retention", "Show or set which versions of a repository are kept."),
    "sign": (f"{_HERE}.signatures:sign", "Sign a version with a private key."),
    "verify": (f"{_HERE}.signatures:verify", "Verify that a key has signed a version."),
    "signature": (f"{_HERE}.signatures:signature", "Manage signatures as files, for other programs."),
    "gate": (f"{_HERE}.gates:gate", "Decide whether a version may get a tag; exit 0 or 6."),
    "promote": (f"{_HERE}.gates:promote", "Gate a version and move the tag to it, in one transaction."),
    "approve": (f"{_HERE}.gates:approve", "Approve a version for a tag."),
    "policy": (f"{_HERE}.policies:policy", "Manage policies: what a version must show before a tag may move."),
    "job": (f"{_HERE}.jobs:job", "Manage jobs: list, show, follow, cancel, retry, wait."),
    "base": (f"{_HERE}.bases:base", "Manage base models."),
    "dataset": (f"{_HERE}.datasets:dataset", "Manage datasets for evaluation."),
    "namespace": (f"{_HERE}.access:namespace", "Manage namespaces: who may read them."),
    "token": (f"{_HERE}.access:token", "Manage the tokens of namespaces that you administer."),
    "login": (f"{_HERE}.account:login", "Sign in to a registry and make it the default."),
    "logout": (f"{_HERE}.account:logout", "Forget the token of a registry."),
    "ci-token": (f"{_HERE}.account:ci_token", "Exchange the identity token of a CI job for a token of the registry."),
    "whoami": (f"{_HERE}.account:whoami", "Show the authenticated user."),
    "cache": (f"{_HERE}.cache:cache", "Manage the local cache of pulled versions."),
    "completion": (f"{_HERE}.completion:completion", "Print the completion script of a shell."),
}
SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "Adapters": ("push", "import", "pull", "list", "show", "validate", "report", "diff"),
    "Merge and derive": ("merge", "compose", "extract", "resize", "lineage", "reproduce", "provenance"),
    "Versions and tags": (
        *("history", "tags", "tag", "untag", "rollback", "protect", "unprotect"),
        *("yank", "unyank", "delete", "undelete", "retention", "sign", "verify", "signature"),
    ),
    "Gates": ("gate", "promote", "approve", "policy"),
    "Jobs": ("job",),
    "Bases and data": ("base", "dataset"),
    "Rights": ("namespace", "token"),
    "Account and machine": ("login", "logout", "ci-token", "whoami", "cache", "completion"),
}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A reference is [namespace/]name[:tag or :vN][@sha256:...]. Settings: LORA_REG_SERVER, LORA_REG_TOKEN, "
    "LORA_REG_TOKEN_FILE, LORA_REG_NAMESPACE, LORA_REG_CACHE, LORA_REG_OFFLINE. Exit status: 0 done, 1 failure, "
    "2 usage, 3 not found, 4 not allowed, 5 conflict, 6 refused by a check, 7 integrity, 8 still pending, "
    "9 rate or quota, 10 unavailable.",
)
@click.version_option(__version__, prog_name="lora-reg", message="%(prog)s %(version)s")
def cli() -> None:
    """Version, check, merge and serve LoRA adapters with a registry."""


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status."""
    from lora_contract.errors import RegistryError

    state = State(arguments)
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
        from lora_reg.cli.suggest import with_suggestion

        failure = with_suggestion(error, state)
    except BrokenPipeError:
        # The reader of our output has closed it. Keep the interpreter from reporting that once more at its end.
        sys.stdout = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115
        return 1
    except ModuleNotFoundError as error:
        failure = _missing_package(error)
    except OSError as error:
        failure = RegistryError(
            "local-io", ": ".join(filter(None, (error.strerror or type(error).__name__, error.filename))) + "."
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
