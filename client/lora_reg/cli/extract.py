"""extract: an adapter from a fine-tune and its base, by a job of the registry or on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_contract.errors import RegistryError
from lora_reg.cli.derive import (
    DTYPES,
    Counted,
    Where,
    by_job,
    device_option,
    kernels,
    need_folders,
    where_options,
)
from lora_reg.cli.losses import of_job, print_local
from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client


@click.command(
    cls=Command,
    examples=(
        "lora-reg extract acme/tuned --base llama-2-7b --rank 16 --to acme/extracted",
        "lora-reg extract --local ./tuned --base ./base --keep-energy 0.9 -o ./lora",
    ),
)
@click.argument("tuned", metavar="REF")
@click.option(
    "--base",
    required=True,
    metavar="REF",
    help="Base that the checkpoint was fine-tuned from; with --local, its folder.",
)
@click.option("--rank", type=click.IntRange(1), metavar="R", help="Rank of every module.")
@click.option(
    "--keep-energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="X",
    help="Instead of --rank: for each module, the smallest rank that keeps this share of its change, e.g. 0.9.",
)
@click.option("--max-rank", type=click.IntRange(1), metavar="R", help="With --keep-energy: maximum rank.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Module to extract, by its path or last segment; may be repeated (default: all linear layers).",
)
@click.option(
    "--save-changed", is_flag=True, help="Store changed tensors that cannot be factorized in full (modules_to_save)."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the randomized SVD.")
@click.option("--dtype", type=DTYPES, default="float32", show_default=True, help="Output dtype of the factors.")
@device_option
@where_options
@pass_state
def extract(
    state: State,
    where: Where,
    tuned: str,
    base: str,
    rank: int | None,
    keep_energy: float | None,
    max_rank: int | None,
    targets: tuple[str, ...],
    save_changed: bool,
    seed: int,
    dtype: str,
    device: str | None,
) -> None:
    """Extract an adapter from a fine-tune and its base.

    REF is a fine-tuned checkpoint: a model, or a base added with `lora-reg base add`. To extract from folders on this
    machine: --local TUNED_DIR --base BASE_DIR -o DIR.
    """
    if (rank is None) == (keep_energy is None):
        raise click.UsageError("Give either --rank R or --keep-energy X.")
    if max_rank is not None and keep_energy is None:
        raise click.UsageError("--max-rank needs --keep-energy.")
    options: dict[str, Any] = {
        "rank": rank,
        "keep_energy": keep_energy,
        "max_rank": max_rank,
        "targets": list(targets) or None,
        "save_changed": save_changed,
        "seed": seed,
        "dtype": dtype,
        "device": device or "cpu",
    }
    output = where.here()
    if output is None:
        _by_job(state, where, tuned, base, options)
        return
    need_folders(Path(tuned), Path(base))
    extracting = kernels("extracting", "Extracting")
    progress = state.progress()
    try:
        report = extracting.extract_folders(tuned, base, output, progress=Counted(progress, "Extracting"), **options)
    finally:
        progress.end()
    print_local(state, "extract", output, report, device=device)


def _by_job(state: State, where: Where, tuned: str, base: str, options: dict[str, Any]) -> None:
    from lora_contract.wire.operations import ExtractRequest

    if Path(tuned).is_dir() and tuned.startswith((".", "/")):
        raise RegistryError(
            "usage",
            f"{tuned} is a folder; a job extracts from a version of the registry.",
            hint="Add the checkpoint with `lora-reg base add NAME DIR`, or extract on this machine with --local.",
        )

    def submit(client: Client, target: dict[str, Any]) -> JobView:
        return client.extract(
            ExtractRequest(tuned=str(client.parse(tuned)), base=str(client.parse(base)), **options, **target)
        )

    by_job(state, where, submit, schema="lora-reg/extract/1", shown=of_job)
