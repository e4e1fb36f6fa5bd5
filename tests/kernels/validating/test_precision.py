"""Bases loaded in bfloat16 and in NF4, as large ones and QLoRA's are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_contract.errors import RegistryError
from lora_contract.validation import LARGE_BASE, Precision, Validation, default_precision
from lora_kernels.merging import merge_folder
from lora_kernels.validating import EvaluationSet, Subject, models, validate
from tests.support.command import TINY
from tests.support.quantizing import quantized_checkpoints
from tests.support.testbed import require_testbed


def run(precision: Precision, folder: Path) -> Validation:
    bed = require_testbed()
    few = folder / "few.jsonl"
    few.write_bytes(b"".join((bed / "data" / "sql_eval.jsonl").read_bytes().splitlines(keepends=True)[:8]))
    chosen = EvaluationSet("quality", "sha256:aa", "sql", few)
    adapter = bed / "adapters" / "series-sql" / "v2"
    return validate(Subject(bed / "base", adapter, "sha256:v", "sha256:b", (chosen,), precision=precision))


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_a_base_in_another_precision_has_other_losses_near_those_in_float32(
    precision: Precision, tmp_path: Path
) -> None:
    exact, found = run("float32", tmp_path), run(precision, tmp_path)
    assert (exact.precision, found.precision) == ("float32", precision)
    for mine, theirs in zip(
        (found.evaluations[0].loss, found.evaluations[0].base_loss),
        (exact.evaluations[0].loss, exact.evaluations[0].base_loss),
        strict=True,
    ):
        assert 0 < abs(mine - theirs) < 0.05
    assert found.layers["agreement"].state == "passed"


def test_nf4_merged_onto_nf4_is_what_runs_unmerged(tmp_path: Path) -> None:
    forms = run("nf4", tmp_path).layers["agreement"].facts["forms"]
    assert list(forms) == ["nf4 base, float32", "nf4 base, bfloat16", "bfloat16"]
    # The base's quantization is in both of the first, and not in the last.
    assert forms["nf4 base, float32"]["divergence"] < 1e-4
    assert forms["bfloat16"]["divergence"] > 1e-3


def test_a_report_says_what_made_it(tmp_path: Path) -> None:
    environment = run("float32", tmp_path).environment
    assert environment["backend"] in ("cpu", "cuda")
    assert environment["machine"]
    assert {"torch", "transformers", "peft", "bitsandbytes", "python"} <= environment.keys()


def test_large_bases_are_loaded_in_bfloat16() -> None:
    assert (default_precision(LARGE_BASE), default_precision(LARGE_BASE + 1)) == ("float32", "bfloat16")


def test_a_checkpoint_that_is_quantized_stays_so(tmp_path: Path) -> None:
    merge_folder(TINY / "base", [(TINY / "adapters" / "queries-v1", 1.0)], tmp_path / "nf4", dtype="nf4", min_kept=None)
    model = models.load_base(tmp_path / "nf4")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_a_base_whose_library_is_missing_is_refused_with_its_name() -> None:
    with pytest.raises(RegistryError, match="compressed-tensors") as caught:
        models.load_base(quantized_checkpoints() / "pack-4-group")
    assert caught.value.code == "unsupported" and "merge the adapter" in caught.value.hint
