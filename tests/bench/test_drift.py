"""The table of what merging costs: the page shows what was measured, of every type, and what was measured is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import drift, drift_table, table
from benchmarks.drift_types import TRAINED, Trained
from benchmarks.process import ROOT
from lora_contract.adapter.types import TYPES
from lora_kernels.types.refused import REASONS
from lora_kernels.types.table import ROOMS
from lora_kernels.validating.agreement import EXACT, FORMS, ROUNDED
from lora_kernels.validating.effect import WEAK

# BONE is an older name of MISS, which PEFT 0.21 neither writes nor loads; POLY takes the task with every input, which
# neither a trainer nor an evaluation gives.
UNMEASURED = {"BONE", "POLY"}
NAMES = [form.name for form in FORMS["float32"]]


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((table.RESULTS / "drift.json").read_bytes())
    return found


def test_the_page_shows_the_results() -> None:
    page = (ROOT / "docs" / "validation.md").read_text("utf-8")
    assert table.shown(page) == drift_table.tables()


def test_every_type_is_in_the_table_or_has_a_reason() -> None:
    assert {trained.type for trained in TRAINED} | UNMEASURED == ROOMS.keys()
    assert ROOMS.keys() | REASONS.keys() == TYPES.keys()


def test_what_was_measured_is_what_would_be_measured() -> None:
    rows = [Trained(*(row[key] for key in ("label", "type")), "", row["options"], row["rate"], row["biased"])
            for row in record()["rows"]]  # fmt: skip
    assert rows == [Trained(one.label, one.type, "", one.options, one.rate, one.biased) for one in TRAINED]
    assert record()["unmerged"] == dict(sorted(REASONS.items()))


def test_every_merge_is_the_adapter_up_to_rounding() -> None:
    for row in record()["rows"]:
        assert row["effect"] > 1000 * WEAK, row["label"]
        assert row["forms"].keys() == set(NAMES)
        for name, bound in (("float32", EXACT), ("bfloat16", ROUNDED), ("float16", ROUNDED)):
            assert row["forms"][name]["divergence"] <= bound, (row["label"], name)


def test_a_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one type, trained for two steps."""
    monkeypatch.setattr(drift, "STEPS", 2)
    (trained,) = (one for one in TRAINED if one.label == "IA3")
    row = drift.measured(trained, drift.EXAMPLE / "base", tmp_path / "adapter")
    assert row["effect"] > WEAK
    assert row["forms"]["float32"]["divergence"] <= EXACT


def test_the_table_tells_refusals_and_what_was_lost(tmp_path: Path) -> None:
    assert drift_table.tables(tmp_path) == "Nothing has been measured yet.\n"
    form = {"divergence": 3e-13, "top_agreement": 1.0, "kept": 1.0}
    forms = dict.fromkeys(NAMES, form)
    forms |= {"float16": {"refused": "beyond its range"}, "bfloat16": {**form, "top_agreement": 0.9961, "kept": 0.53}}
    qlora = {"label": "merged onto NF4", "loss": 2.5, "divergence": 1e-5, "top_agreement": 0.99, "kept": 0.04}
    written = {
        "machine": {"cpu": "Some CPU"},
        "versions": {"peft": "0.1", "torch": "2.0"},
        "steps": 3,
        "probes": {"texts": 8, "tokens": 400},
        "rows": [{"label": "New", "biased": True, "effect": 0.5, "forms": forms}],
        "unmerged": {"ONE": "it cannot", "OTHER": "it cannot"},
        "qlora": {"steps": 5, "loss": 2.4, "base_loss": 3.1, "rows": [qlora]},
    }
    (tmp_path / "drift.json").write_text(json.dumps(written))
    text = drift_table.tables(tmp_path)
    assert (
        "| New † | 0.50 | 3.0e-13, 100 % | 3.0e-13, 99.6 %, kept 53 % | refused: beyond its range | 3.0e-13, 100 % |"
        in text
    )
    assert "| ONE, OTHER | it cannot |" in text
    assert "| merged onto NF4 | 2.5000 | 1.0e-05 | 99.0 % |" in text
