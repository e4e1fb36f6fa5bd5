"""gate, approve, promote."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.gates import GateView
    from lora_reg.client import Client

_TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Stop waiting after so long, with exit status 8."
)
_DATA = click.option("--data", multiple=True, metavar="REF", help="A further evaluation set; may be repeated.")


@click.command(cls=Command)
@click.argument("ref")
@click.option("--for", "tag", required=True, metavar="TAG", help="The tag that the version shall have.")
@_DATA
@click.option("--policy", "policy_file", metavar="FILE", help="Try this policy instead; nothing is promoted by it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "junit", "github"]),
    default="text",
    show_default=True,
    help="How it is told.",
)
@_TIMEOUT
@pass_state
def gate(
    state: State, ref: str, tag: str, data: tuple[str, ...], policy_file: str | None, form: str, timeout: float | None
) -> int:
    """Ask whether a version may have a tag; exit 6 where it may not.

    Validations that are missing are run first. The tag's policy decides, or the default one; `github` writes
    annotations, and a summary to the file that GITHUB_STEP_SUMMARY names.
    """
    from lora_reg.cli.jobs import watch
    from lora_reg.cli.policies import read
    from lora_reg.waiting import until_decided

    state.json = state.json or form == "json"
    client = state.client()
    subject = pinned(client, ref)
    document = None if policy_file is None else read(Path(policy_file))
    view = until_decided(
        lambda: client.gate(subject, tag, data=data, document=document),
        lambda answer: answer,
        partial(watch, state, client, timeout=timeout),
    )
    _tell(state, view, form, data)
    return _status(view)


@click.command(cls=Command)
@click.argument("ref")
@click.option("--for", "tag", required=True, metavar="TAG", help="The tag that the version may have.")
@click.option("--reason", default="", help="Why, for the log.")
@pass_state
def approve(state: State, ref: str, tag: str, reason: str) -> None:
    """Give your word that a version may have a tag.

    It counts where a policy asks for approvals, and not for a promotion of your own.
    """
    given = state.client().approve(ref, tag, reason=reason)
    name = f"{given.namespace}/{given.name}:v{given.number}"
    state.output().result(
        "lora-reg/approval/1",
        given,
        human=[f"{name}  approved for {given.tag} by {given.author} ({given.role})"],
        quiet=[name],
    )


@click.command(cls=Command)
@click.argument("ref")
@click.argument("tag")
@_DATA
@click.option(
    "--expect", metavar="REF", help="Only if the tag points there now (`none`: only if there is no such tag)."
)
@click.option("--force", is_flag=True, help="Although the gate does not allow it: for administrators, with --reason.")
@click.option("--reason", default="", help="Why, for the history.")
@_TIMEOUT
@pass_state
def promote(
    state: State,
    ref: str,
    tag: str,
    data: tuple[str, ...],
    expect: str | None,
    force: bool,
    reason: str,
    timeout: float | None,
) -> None:
    """Gate a version and point the tag at it, in one transaction.

    The tag moves only where the gate allows it, and cites the report. Exit status 6 where it is refused.
    """
    from lora_reg.cli.jobs import watch
    from lora_reg.cli.tags import expected_generation
    from lora_reg.formatting import views
    from lora_reg.formatting.gate import checks
    from lora_reg.waiting import until_decided

    if force and not reason:
        raise click.UsageError("--force needs --reason, which is logged with it.")
    client = state.client()
    subject = pinned(client, ref)
    generation = expected_generation(client, client.parse(ref), tag, expect)
    answer = until_decided(
        lambda: client.promote(subject, tag, data=data, generation=generation, force=force, reason=reason),
        lambda answer: answer.gate,
        partial(watch, state, client, timeout=timeout),
    )
    output, moved = state.output(), answer.tag
    assert moved is not None  # a refusal is raised, and what is pending is waited for
    output.result(
        "lora-reg/promotion/1",
        answer,
        human=[*checks(answer.gate.checks), "", views.tag(moved)],
        quiet=[f"{moved.namespace}/{moved.name}:{moved.tag}"],
    )
    output.next(f"lora-reg pull {moved.namespace}/{moved.name}:{moved.tag}")


def pinned(client: Client, ref: str) -> str:
    """The version by its digest: what is asked for last is then what was asked for first."""
    view = client.version(ref)
    return f"{view.namespace}/{view.name}@{view.digest}"


def _tell(state: State, view: GateView, form: str, data: tuple[str, ...]) -> None:
    from lora_reg.formatting import gate as text
    from lora_reg.formatting import github, junit

    output = state.output()
    if output.mode != "json" and form == "junit":
        click.echo(junit.junit(view))
        return
    if output.mode != "json" and form == "github":
        click.echo("\n".join(github.workflow_commands(view)))
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(github.summary(view))
        return
    name = f"{view.namespace}/{view.name}:v{view.number}"
    output.result("lora-reg/gate/1", view, human=text.gate(view), quiet=[name] if view.allowed else [])
    if view.allowed and view.decision is not None:
        output.next(" ".join([f"lora-reg promote {name} {view.tag}", *(f"--data {ref}" for ref in data)]))


def _status(view: GateView) -> int:
    from lora_contract.errors import ERRORS

    return 0 if view.allowed else ERRORS["gate-refused" if view.allowed is False else "pending"].exit
