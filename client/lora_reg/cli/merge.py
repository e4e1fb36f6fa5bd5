"""merge: by a job of the registry, or on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_contract.recipe import MERGED_DTYPES
from lora_reg.cli.derive import (
    Counted,
    Where,
    by_job,
    device_option,
    kernels,
    need_folders,
    refuse,
    weighted,
    weighted_folders,
    where_options,
)
from lora_reg.cli.merge_plan import print_plan
from lora_reg.cli.output import to_object
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.formatting.devices import device_line, device_lines
from lora_reg.formatting.text import plural

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client


@click.command(
    cls=Command,
    examples=(
        "lora-reg merge acme/sql-writer:prod --to acme/sql-writer-merged",
        "lora-reg merge acme/sql=0.7 acme/docs=0.3 --dtype bfloat16 --to acme/merged",
        "lora-reg merge --local --base-dir ./base ./adapter -o ./merged",
    ),
)
@click.argument("adapters", nargs=-1, required=True, metavar="REF[=W]...")
@click.option("--base", metavar="REF", help="Base to merge into (default: the base that the first adapter pins).")
@click.option("--dtype", type=click.Choice(MERGED_DTYPES), help="Output dtype of merged tensors (default: unchanged).")
@click.option(
    "--onto",
    type=click.Choice(["fp", "nf4"]),
    help="Merge onto the full-precision base, or onto its NF4-dequantized weights (QLoRA).",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "stochastic"]),
    help="Rounding mode when casting to the output dtype (default: nearest).",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of stochastic rounding (default: 0).")
@click.option(
    "--allow-loss", is_flag=True, help="Allow a merge in which rounding discards more than half of the update."
)
@click.option("--base-dir", metavar="DIR", help="With --local: folder of the base.")
@click.option(
    "--prefix",
    metavar="PATH",
    help="With --local: where the base has the model that an adapter was trained on alone, such as "
    "model.language_model.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="With --local: number of threads (default: one per processor).",
)
@device_option
@click.option("--digests", is_flag=True, help="With --local: compute SHA-256 of the output files.")
@click.option("--dry-run", is_flag=True, help="With --local: print the plan and write nothing.")
@where_options
@pass_state
def merge(
    state: State,
    where: Where,
    adapters: tuple[str, ...],
    base: str | None,
    dtype: str | None,
    onto: str | None,
    rounding: str | None,
    seed: int | None,
    allow_loss: bool,
    base_dir: str | None,
    prefix: str | None,
    threads: int | None,
    device: str | None,
    digests: bool,
    dry_run: bool,
) -> None:
    """Merge adapters into their base.

    W is the weight of the adapter in the sum (default: 1). The same merge requested again is the same job with the same
    result. To merge folders on this machine: --local --base-dir DIR ADAPTER_DIR[=W]... -o DIR.
    """
    here = {
        "--base-dir": base_dir,
        "--prefix": prefix,
        "--threads": threads,
        "--digests": digests,
        "--dry-run": dry_run,
    }
    if not where.local:
        where.here()
        refuse(here, "a merge by a job")
        options = {
            "dtype": dtype,
            "allow_loss": allow_loss,
            "onto": onto,
            "rounding": rounding,
            "seed": seed,
            "device": device,
        }
        _merge_by_job(state, where, adapters, base, options)
        return
    refuse({"--base": base}, "--local")
    if base_dir is None:
        raise click.UsageError("--local needs --base-dir DIR, the folder of the base.")
    given = {"dtype": dtype, "onto": onto, "rounding": rounding, "seed": seed, "prefix": prefix}
    numbers = {name: value for name, value in given.items() if value is not None}
    if dry_run:
        print_plan(
            state,
            Path(base_dir),
            weighted_folders(adapters),
            numbers,
            device=device or "cpu",
            digests=digests,
            threads=threads,
        )
        return
    output = where.here()
    assert output is not None
    options = {
        **numbers,
        "digests": digests,
        "threads": threads,
        "device": device or "cpu",
        **({"min_kept": None} if allow_loss else {}),
    }
    _merge_here(state, Path(base_dir), adapters, output, options)


def _merge_by_job(
    state: State, where: Where, adapters: tuple[str, ...], base: str | None, options: dict[str, Any]
) -> None:
    from lora_contract.wire.operations import MergeRequest, WeightedAdapter

    chosen = [weighted(text) for text in adapters]

    def submit(client: Client, target: dict[str, Any]) -> JobView:
        return client.merge(
            MergeRequest(
                adapters=[WeightedAdapter(adapter=str(client.parse(text)), weight=weight) for text, weight in chosen],
                base=None if base is None else str(client.parse(base)),
                **{name: value for name, value in options.items() if value is not None},
                **target,
            )
        )

    by_job(state, where, submit, schema="lora-reg/merge/1", shown=_reported)


def _reported(client: Client, job: JobView) -> list[str]:
    """What became of the base's quantized weights, and which device computed, by the report of the job."""
    from lora_reg.formatting.views import name_of

    reports = client.reports(name_of(job.result)).items if job.result is not None else []
    body: dict[str, Any] = next((report.body for report in reports if report.kind == job.kind), {})
    plain = body.get("dequantized")
    shown = [f"dequantized: {plain}"] if plain is not None else []
    return [f"  {line}" for line in (*shown, *device_lines(body))]


def _merge_here(state: State, base_dir: Path, adapters: tuple[str, ...], output: Path, options: dict[str, Any]) -> None:
    folders = weighted_folders(adapters)
    need_folders(base_dir)
    merging = kernels("merging", "Merging")
    progress = state.progress()
    try:
        report = merging.merge_folder(base_dir, folders, output, progress=Counted(progress, "Merging"), **options)
    finally:
        progress.end()
    kept = "" if report.kept is None else f"; {report.kept:.1%} of the update kept, cosine {report.cosine or 0:.4f}"
    state.output().result(
        "lora-reg/merge-local/1",
        {"output": str(output), "report": report},
        human=[
            f"{output}  {plural(len(report.files), 'file')}, {plural(len(report.tensors), 'tensor')} changed{kept}",
            *([f"dequantized: {report.dequantized}"] if report.dequantized is not None else []),
            *([device_line(to_object(report.execution))] if options["device"] != "cpu" else []),
        ],
        quiet=[str(output)],
    )
