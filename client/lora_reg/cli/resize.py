"""resize: change the rank of an adapter or convert it to plain LoRA, by a job or on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_reg.cli.derive import (
    DTYPES,
    Counted,
    Where,
    by_job,
    device_option,
    kernels,
    need_folders,
    refuse,
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
        "lora-reg resize acme/sql-writer --rank 8 --to acme/sql-writer-small",
        "lora-reg resize acme/sql-writer --plain --to acme/sql-writer-plain",
        "lora-reg resize --local ./adapter --keep-energy 0.99 -o ./smaller",
    ),
)
@click.argument("adapter", metavar="REF")
@click.option("--rank", type=click.IntRange(1), metavar="R", help="Rank of every module.")
@click.option(
    "--keep-energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="X",
    help="Instead of --rank: for each module, the smallest rank that keeps this share of its update, e.g. 0.99.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="Instead of a rank: convert to plain LoRA with the same update, for engines that ignore rsLoRA and "
    "rank patterns.",
)
@click.option("--uniform-rank", is_flag=True, help="With --plain: one rank for all modules, padded with zeros.")
@click.option("--dtype", type=DTYPES, help="Output dtype of the factors (default: unchanged).")
@device_option
@where_options
@pass_state
def resize(
    state: State,
    where: Where,
    adapter: str,
    rank: int | None,
    keep_energy: float | None,
    plain: bool,
    uniform_rank: bool,
    dtype: str | None,
    device: str | None,
) -> None:
    """Change the rank of an adapter, or convert it to plain LoRA.

    Reports the approximation error of each module. To resize a folder on this machine: --local ADAPTER_DIR -o DIR.
    """
    if [rank is not None, keep_energy is not None, plain].count(True) != 1:
        raise click.UsageError("Give one of --rank R, --keep-energy X and --plain.")
    if uniform_rank and not plain:
        raise click.UsageError("--uniform-rank needs --plain.")
    options: dict[str, Any] = {"dtype": dtype}
    options |= {"uniform_rank": uniform_rank} if plain else {"rank": rank, "keep_energy": keep_energy}
    output = where.here()
    if plain:
        refuse({"--device": device}, "--plain")
    if output is None:
        refuse({"--device": device}, "a job")
        _by_job(state, where, adapter, plain, options)
        return
    need_folders(Path(adapter))
    resizing = kernels("resizing", "Resizing")
    progress = state.progress()
    try:
        if plain:
            report = resizing.convert_folder(adapter, output, **options)
        else:
            report = resizing.resize_folder(
                adapter,
                output,
                progress=Counted(progress, "Resizing", "modules"),
                device=device or "cpu",
                **options,
            )
    finally:
        progress.end()
    print_local(state, "convert" if plain else "resize", output, report, device=device)


def _by_job(state: State, where: Where, adapter: str, plain: bool, options: dict[str, Any]) -> None:
    from lora_contract.wire.operations import ConvertRequest, ResizeRequest

    def submit(client: Client, target: dict[str, Any]) -> JobView:
        ref = str(client.parse(adapter))
        if plain:
            return client.convert(ConvertRequest(adapter=ref, **options, **target))
        return client.resize(ResizeRequest(adapter=ref, **options, **target))

    by_job(state, where, submit, schema="lora-reg/resize/1", shown=of_job)
