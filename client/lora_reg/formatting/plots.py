"""A heat map of what changed, module by layer, and losses side by side, as PNG or SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lora_contract.errors import RegistryError

_LAYER: Final = re.compile(r"\.(\d{1,6})\.")
_SUFFIXES: Final = (".png", ".svg")


def check(file: str) -> None:
    """Before the work that the picture is of. Raises RegistryError `usage`."""
    if Path(file).suffix.lower() not in _SUFFIXES:
        raise RegistryError("usage", f"{file!r} ends neither in .png nor in .svg.", hint="Name a PNG or SVG file.")
    _library()


def heat_map(rows: Sequence[dict[str, Any]], file: Path, *, title: str) -> None:
    """rows: of a comparison. A cell is the norm of what lies between both updates of a module."""
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


def loss_bars(rows: Sequence[tuple[str, list[tuple[str, float]]]], file: Path, *, title: str) -> None:
    """rows: an evaluation set and its losses by who has them, in nats per token."""
    names = list(dict.fromkeys(who for _, bars in rows for who, _ in bars))
    figure = _library()(figsize=(2.5 + 1.6 * len(rows), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(names), 1)
    for number, who in enumerate(names):
        found = [(place, dict(bars)[who]) for place, (_, bars) in enumerate(rows) if who in dict(bars)]
        places = [place + (number - (len(names) - 1) / 2) * width for place, _ in found]
        bars = axes.bar(places, [loss for _, loss in found], width, label=who)
        axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylabel("nats per token")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    _save(figure, file)


def _library() -> Any:
    """matplotlib's Figure, which needs no display. Raises RegistryError `usage` where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RegistryError(
            "usage", "Drawing needs matplotlib, which is not installed.", hint="`pip install 'lora-reg[plot]'`"
        ) from error
    return Figure


def _save(figure: Any, file: Path) -> None:
    """Without a date, so that the same numbers are the same picture."""
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
