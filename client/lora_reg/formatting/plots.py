"""Plots as PNG or SVG: a heat map of changes by module and layer, and losses with their intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lora_contract.errors import RegistryError

_LAYER: Final = re.compile(r"\.(\d{1,6})\.")
_SUFFIXES: Final = (".png", ".svg")


def check(file: str) -> None:
    """Check the file name and the library before the work. Raises RegistryError `usage`."""
    if Path(file).suffix.lower() not in _SUFFIXES:
        raise RegistryError("usage", f"{file!r} does not end in .png or .svg.", hint="Name a PNG or SVG file.")
    _library()


def heat_map(rows: Sequence[dict[str, Any]], file: Path, *, title: str) -> None:
    """Plot the norm of the difference between the updates of each module. rows: of a comparison."""
    cells: dict[tuple[str, str], float] = {}
    for row in rows:
        layer = _LAYER.search(row["module"])
        kind = row["module"][layer.end() :] if layer else row["module"]
        cells[(kind, layer[1] if layer else "-")] = row["difference"]
    kinds = sorted({kind for kind, _ in cells})
    layers = sorted({layer for _, layer in cells}, key=lambda text: (text == "-", int(text) if text != "-" else 0))
    grid = [[cells.get((kind, layer), float("nan")) for layer in layers] for kind in kinds]
    figure = _library()(figsize=(3.6 + 0.35 * len(layers), 1.4 + 0.32 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, label="norm of the difference")
    _save(figure, file)


Bar = tuple[str, float, tuple[float, float] | None]


def loss_bars(rows: Sequence[tuple[str, Sequence[Bar]]], file: Path, *, title: str) -> None:
    """Plot losses in nats per token.

    rows: a dataset and its bars, each the name of a model, its loss, and the loss's 95% interval if it is known.
    """
    names = list(dict.fromkeys(who for _, bars in rows for who, _, _ in bars))
    figure = _library()(figsize=(2.5 + 1.6 * len(rows), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(names), 1)
    for number, who in enumerate(names):
        found = [(place, bar) for place, (_, bars) in enumerate(rows) for bar in bars if bar[0] == who]
        places = [place + (number - (len(names) - 1) / 2) * width for place, _ in found]
        bars = axes.bar(places, [loss for _, (_, loss, _) in found], width, label=who)
        axes.bar_label(bars, fmt="%.3f", fontsize=7, label_type="center")
        known = [(place, loss, *span) for place, (_, (_, loss, span)) in zip(places, found, strict=True) if span]
        if known:
            errors = [[loss - low for _, loss, low, _ in known], [high - loss for _, loss, _, high in known]]
            axes.errorbar(
                [place for place, *_ in known],
                [loss for _, loss, *_ in known],
                yerr=errors,
                fmt="none",
                ecolor="black",
                capsize=3,
                linewidth=1,
            )
    axes.set_xticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylabel("nats per token, 95% interval")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    _save(figure, file)


def _library() -> Any:
    """matplotlib's Figure, which needs no display. Raises RegistryError `usage` if it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RegistryError(
            "usage",
            "Plots need matplotlib, which is not installed.",
            hint="Install it with `pip install 'lora-reg[plot]'`.",
        ) from error
    return Figure


def _save(figure: Any, file: Path) -> None:
    """Save without a date, so that the same numbers give the same file."""
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
