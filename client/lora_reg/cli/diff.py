"""diff and reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_contract.wire.repositories import VersionView
    from lora_reg.client import Client

SHOWN = 12
"""Modules that are shown; `--json` prints all of them."""

_TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Stop waiting after this time, with exit status 8."
)


@click.command(
    cls=Command,
    examples=(
        "lora-reg diff acme/sql-writer:v1 acme/sql-writer:v2",
        "lora-reg diff acme/sql:prod acme/sql:candidate --plot changes.png",
        "lora-reg diff --local ./before ./after",
    ),
)
@click.argument("before", metavar="REF")
@click.argument("after", metavar="REF")
@click.option("--plot", metavar="FILE", help="Draw a heat map of the changes by module and layer, as PNG or SVG.")
@click.option("--local", is_flag=True, help="Compare two local folders.")
@_TIMEOUT
@pass_state
def diff(state: State, before: str, after: str, plot: str | None, local: bool, timeout: float | None) -> None:
    """Compare two adapters: files, config, losses and modules.

    INPUTS and OUTPUTS are the overlap of the subspaces that both updates read from and write to: 1 is the same
    subspace, 0 is orthogonal.
    """
    from lora_reg.comparing import changed_config, side_by_side
    from lora_reg.formatting.comparison import modules

    if plot is not None:
        from lora_reg.formatting.plots import check

        check(plot)
    if local:
        document: dict[str, Any] = {"comparison": _here(before, after)}
        human: list[str] = []
    else:
        client = state.client()
        views = client.version(before), client.version(after)
        comparison = _by_job(state, client, views, timeout)
        configs = [_config(client, view) for view in views]
        reports = [client.reports(_name(view)).items for view in views]
        document = {
            "before": views[0],
            "after": views[1],
            "files": _files(*views),
            "config": changed_config(*configs),
            "losses": side_by_side(*reports),
            "comparison": comparison,
        }
        human = _heads(document)
    human += modules(document["comparison"], SHOWN)
    if plot is not None:
        from lora_reg.formatting.plots import heat_map

        heat_map(document["comparison"]["modules"], Path(plot), title=f"{Path(before).name} to {Path(after).name}")
        state.output().note(f"plot written to {Path(plot).resolve()}")
    names = [row["module"] for row in document["comparison"]["modules"] if row["state"] != "same"]
    state.output().result("lora-reg/diff/1", document, human=human, quiet=names)


@click.command(cls=Command, examples=("lora-reg reproduce acme/both:v1",))
@click.argument("ref")
@_TIMEOUT
@pass_state
def reproduce(state: State, ref: str, timeout: float | None) -> int:
    """Run the recipe of a version again and compare digests.

    The exit status is 7 if a file differs.
    """
    from lora_contract.errors import ERRORS
    from lora_reg.formatting.text import Word, short, table

    client = state.client()
    view = client.version(ref)
    job = client.reproduce(_name(view))
    report = _report(state, client, job, _name(view), timeout)
    rows = [
        (
            Word("same", "good") if file["expected"] == file["found"] else Word("DIFFERS", "bad"),
            short(file["expected"] or "-"),
            file["path"],
        )
        for file in report.body["files"]
    ]
    name = f"{view.namespace}/{view.name}:v{view.number}"
    state.output().result(
        "lora-reg/reproduction/1",
        {"version": view, "reproduced": report.passed, **report.body},
        human=[*table(("", "DIGEST", "FILE"), rows), f"{name}  {'reproduced' if report.passed else 'not reproduced'}"],
        quiet=[name] if report.passed else [],
    )
    return 0 if report.passed else ERRORS["not-reproduced"].exit


def _by_job(state: State, client: Client, views: tuple[VersionView, VersionView], timeout: float | None) -> Any:
    job = client.diff(_name(views[0]), _name(views[1]))
    return _report(state, client, job, _name(views[1]), timeout).body


def _report(state: State, client: Client, job: JobView, name: str, timeout: float | None) -> Any:
    from lora_reg.cli.jobs import watch
    from lora_reg.waiting import require_done

    require_done(job if job.state == "done" else watch(state, client, job.id, timeout=timeout))
    return next(item for item in client.reports(name).items if item.id == job.id)


def _here(before: str, after: str) -> Any:
    import msgspec

    from lora_reg.cli.derive import kernels, need_folders

    need_folders(Path(before), Path(after))
    return msgspec.to_builtins(kernels("comparing", "Comparing").compare_folders(Path(before), Path(after)))


def _config(client: Client, view: VersionView) -> dict[str, Any]:
    from lora_contract.adapter.config import MAX_CONFIG_BYTES, parse_config

    with client.file(_name(view), "adapter_config.json", end=MAX_CONFIG_BYTES) as response:
        return parse_config(response.read()).raw


def _files(before: VersionView, after: VersionView) -> list[dict[str, Any]]:
    """Files that differ, with their digests; None if one version lacks the file."""
    one, other = ({file.path: str(file.digest) for file in view.files} for view in (before, after))
    return [
        {"path": path, "before": one.get(path), "after": other.get(path)}
        for path in sorted({*one, *other})
        if one.get(path) != other.get(path)
    ]


def _heads(document: dict[str, Any]) -> list[str]:
    from lora_reg.formatting.comparison import losses
    from lora_reg.formatting.text import short, table
    from lora_reg.formatting.views import cut

    files = [(short(file["before"] or "-"), short(file["after"] or "-"), file["path"]) for file in document["files"]]
    config = [(row["key"], cut(str(row["before"]), 30), cut(str(row["after"]), 120)) for row in document["config"]]
    parts = (table(("BEFORE", "AFTER", "FILE"), files), table(("CONFIG", "BEFORE", "AFTER"), config))
    return [line for part in (*parts, losses(document["losses"])) if part for line in (*part, "")]


def _name(view: VersionView) -> str:
    return f"{view.namespace}/{view.name}@{view.digest}"
