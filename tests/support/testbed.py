"""Where the larger test bed lies: a folder beside the checkout, or the one that LORA_REG_TESTBED names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def find_testbed() -> Path | None:
    """Return the folder of the test bed, or None where there is none; a LORA_REG_TESTBED that is no folder raises."""
    if named := os.environ.get("LORA_REG_TESTBED"):
        if not Path(named).is_dir():
            raise FileNotFoundError(f"LORA_REG_TESTBED={named}: no such folder")
        return Path(named)
    beside = ROOT.parent / "shared" / "testbed"
    return beside if beside.is_dir() else None


def require_testbed() -> Path:
    """Return the folder of the test bed, or skip the test that asks."""
    found = find_testbed()
    if found is None:
        pytest.skip("no test bed beside the checkout (LORA_REG_TESTBED)")
    return found
