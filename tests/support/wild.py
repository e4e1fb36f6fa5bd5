"""Small inputs made after what people have in their hands: a folder beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WILD = ROOT.parent / "shared" / "wild"


def require_wild(name: str) -> Path:
    """Return a folder of these inputs, or skip the test that asks."""
    found = WILD / name
    if not found.is_dir():
        pytest.skip("no inputs from the world beside the checkout")
    return found
