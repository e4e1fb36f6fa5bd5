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
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Stop waiting after this time, with exit status 8."
)
_DATA = click.option("--data", multiple=True, metavar="REF", help="Additional dataset to evaluate on; may be repeated.")


@click.command(
    cls=Command,
    examples=(
        "lora-reg gate acme/sql-writer:candidate --for prod",
        "lora-reg gate acme/sql-writer:v3 --for prod --format junit > gate.xml",
    ),
)
@click.argument("ref")
@click.option("--for", "tag", required=True, metavar="TAG", help="Tag that the version is to get.")
@_DATA
@click.option("--policy", "policy_file", metavar="FILE", help="Try this policy instead; it promotes nothing.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "junit", "github"]),
    default="text",
    show_default=True,
    help="Output format.",
)
@_TIMEOUT
@pass_state
def gate(
    state: State, ref: str, tag: str, data: tuple[str, ...], policy_file: str | None, form: str, timeout: float | None
) -> int:
    """Decide whether a version may get a tag; exit 0 or 6.

    Missing validations are run first. The policy of the tag decides, or the default policy. The format `github` prints
    annotations and appends a summary to the file GITHUB_STEP_SUMMARY.
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
    _print(state, view, form, data)
    return _status(view)


@click.command(cls=Command, examples=("lora-reg approve acme/sql-writer:v3 --for prod --reason 'reviewed by QA'",))
@click.argument("ref")
@click.option("--for", "tag", required=True, metavar="TAG", help="Tag that the version may get.")
@click.option("--reason", default="", metavar="TEXT", help="Reason, kept with the approval.")
@pass_state
def approve(state: State, ref: str, tag: str, reason: str) -> None:
    """Approve a version for a tag.

    Policies may require approvals. Approvals by the promoter do not count.
    """
    given = state.client().approve(ref, tag, reason=reason)
    name = f"{given.namespace}/{given.name}:v{given.number}"
    state.output().result(
        "lora-reg/approval/1",
        given,
        human=[f"{name}  approved for {given.tag} by {given.author} ({given.role})"],
        quiet=[name],
    )


@click.command(
    cls=Command,
    examples=(
        "lora-reg promote acme/sql-writer:candidate prod --data acme/sql-eval",
        "lora-reg promote acme/sql-writer:v4 prod --expect v3",
    ),
)
@click.argument("ref")
@click.argument("tag")
@_DATA
@click.option(
    "--expect",
    metavar="REF",
    help="Promote only if the tag points to REF now (`none`: only if the tag does not exist).",
)
@click.option("--force", is_flag=True, help="Promote even if the gate refuses (admin, needs --reason).")
@click.option("--reason", default="", metavar="TEXT", help="Reason, kept in the history.")
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
    """Gate a version and move the tag to it, in one transaction.

    The tag moves only if the gate allows it. The exit status is 6 if the gate refuses.
    """
    from lora_reg.cli.jobs import watch
    from lora_reg.cli.tags import expected_generation
    from lora_reg.formatting import views
    from lora_reg.formatting.gate import checks
    from lora_reg.waiting import until_decided

    if force and not reason:
        raise click.UsageError("--force needs --reason, which is logged.")
    client = state.client()
    subject = pinned(client, ref)
    generation = expected_generation(client, client.parse(ref), tag, expect)
    answer = until_decided(
        lambda: client.promote(subject, tag, data=data, generation=generation, force=force, reason=reason),
        lambda answer: answer.gate,
        partial(watch, state, client, timeout=timeout),
    )
    output, moved = state.output(), answer.tag
    assert moved is not None  # a refusal is raised, and a pending gate is waited for
    output.result(
        "lora-reg/promotion/1",
        answer,
        human=[*checks(answer.gate.checks), "", views.tag(moved)],
        quiet=[f"{moved.namespace}/{moved.name}:{moved.tag}"],
    )
    output.next(f"lora-reg pull {moved.namespace}/{moved.name}:{moved.tag}")


def pinned(client: Client, ref: str) -> str:
    """The version by its digest, so that all requests of a command mean the same version."""
    view = client.version(ref)
    return f"{view.namespace}/{view.name}@{view.digest}"


def _print(state: State, view: GateView, form: str, data: tuple[str, ...]) -> None:
    from lora_reg.formatting import gate as text
    from lora_reg.formatting import github, junit

    output = state.output()
    if output.mode != "json" and form == "junit":
        output.text(junit.junit(view))
        return
    if output.mode != "json" and form == "github":
        output.text("\n".join(github.workflow_commands(view)))
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
