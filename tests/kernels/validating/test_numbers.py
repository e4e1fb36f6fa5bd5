"""The layer `numbers` of every type that merges, against dense float64 formulas; what it says of faults; its memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from lora_contract.errors import RegistryError  # noqa: E402
from lora_contract.validation import LayerResult  # noqa: E402
from lora_kernels.linalg.spectral_norm import spectral_norm  # noqa: E402
from lora_kernels.merging import merge_folder  # noqa: E402
from lora_kernels.validating.numbers import LARGE, numbers  # noqa: E402
from tests.kernels.checkpoints import matrix, pair, write_adapter, write_base, write_safetensors  # noqa: E402
from tests.kernels.types.cases import Case, adapter_folder, base_folder  # noqa: E402
from tests.kernels.types.lora.models import make_layers, parameters64, save_adapter  # noqa: E402
from tests.kernels.types.test_types import CASES, FC, IDENTITIES, places  # noqa: E402
from tests.support.oracle import Merged  # noqa: E402
from tests.support.oracle_lora import merge_lora64, read_adapter64  # noqa: E402
from tests.support.oracle_types import merge_types  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]
# Figures are given with six digits; the squared spectral norm is right to this part (`spectral_norm.RESIDUAL`).
DIGITS = 1e-5
SPECTRAL = 1e-4
Q = "model.layers.0.self_attn.q_proj"


def rows(found: LayerResult) -> dict[str, dict[str, Any]]:
    return {row["tensor"]: row for row in found.facts["modules"]}


def assert_right(found: LayerResult, right: dict[str, Merged]) -> None:
    """Norm, share and stable rank of every tensor that changes, and of no other."""
    told = rows(found)
    assert told.keys() == right.keys()
    for name, merged in right.items():
        change = merged.exact - merged.base
        norm, weight = np.linalg.norm(change), np.linalg.norm(merged.base)
        row = told[name]
        # What float32 may have made of the change, element by element.
        off = float(np.linalg.norm(merged.float32_error))
        assert abs(row["norm"] - norm) <= DIGITS * norm + off, name
        if weight == 0:
            assert row["share"] is None, name
        else:
            assert abs(row["share"] - norm / weight) <= (DIGITS * norm + off) / weight, name
        if change.ndim == 1:
            assert row["stable_rank"] is None
            continue
        largest = np.linalg.svd(change.reshape(len(change), -1), compute_uv=False)[0]
        rank = (norm / largest) ** 2 if norm > off else 0.0
        assert row["stable_rank"] == pytest.approx(rank, rel=2 * SPECTRAL + 2 * off / max(largest, off)), name


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in IDENTITIES], ids=str)
def test_every_type_is_measured_as_its_dense_formula_says(tmp_path: Path, case: Case) -> None:
    base = base_folder(case, tmp_path / "base", "BF16")
    adapter = adapter_folder(case, tmp_path / "adapter", "BF16")
    found = numbers(base, adapter)
    assert_right(found, merge_types(base, [(adapter, 1.0)], FC if case.transposed else (), places))
    # AdaLoRA prunes modules whole.
    dead = ["module-dead"] if case.edit is not None else []
    assert [finding.code for finding in found.findings if finding.code != "update-large"] == dead
    assert found.facts["overflows"] == {"float16": [], "bfloat16": []}


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_a_type_that_computes_the_weight_anew_and_leaves_it_as_it_was_is_dead(tmp_path: Path, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    base = base_folder(case, tmp_path / "base", "BF16")
    found = numbers(base, adapter_folder(case, tmp_path / "adapter", "BF16"))
    assert [row["norm"] for row in found.facts["modules"]] == [0]
    assert [finding.code for finding in found.findings] == ["module-dead"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["narrow", "wide", "embed_tokens", "conv2"]},
        {"target_modules": ["attention"]},
        {"target_modules": ["narrow", "wide", "conv2"], "use_dora": True},
        {"target_modules": ["narrow"], "lora_bias": True},
        {"target_modules": ["narrow"], "bias": "all"},
        {"target_modules": ["narrow"], "modules_to_save": ["attention"]},
        {"target_modules": ["narrow"], "trainable_token_indices": {"embed_tokens": [3, 66, 0]}},
    ],
    ids=lambda options: "-".join([*options["target_modules"], *list(options)[1:]]),
)
def test_lora_with_what_it_carries_beside_its_factors(tmp_path: Path, options: dict[str, Any]) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(model, peft.LoraConfig(r=4, lora_alpha=6, **options), tmp_path / "adapter", seed=3)
    found = numbers(base, adapter)
    assert_right(found, merge_lora64(parameters64(model), [read_adapter64(adapter)]))
    replaced = {name for name, row in rows(found).items() if row["replaced"]}
    expected = {name for name in parameters64(model) if name.startswith("attention.")}
    biases = {name for name in rows(found) if name.endswith("bias")}
    assert replaced == (expected if "modules_to_save" in options else biases if "bias" in options else set())


def test_pairs_that_add_nothing_are_counted(tmp_path: Path) -> None:
    tensors = dict(pair(Q, out=24, in_=20, r=8, seed=1))
    dtype, b = tensors[f"{Q}.lora_B.weight"]
    b[:, [2, 5]] = 0
    tensors[f"{Q}.lora_B.weight"] = (dtype, b)
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(24, 20, seed=2))}])
    found = numbers(base, write_adapter(tmp_path / "adapter", tensors, r=8))
    assert (rows(found)[f"{Q}.weight"]["rank"], rows(found)[f"{Q}.weight"]["dead_pairs"]) == (8, 0.25)


def test_more_ranks_than_the_weight_has_are_measured_as_a_whole(tmp_path: Path) -> None:
    tensors = pair(Q, out=24, in_=20, r=32, seed=1)
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(24, 20, seed=2))}])
    adapter = write_adapter(tmp_path / "adapter", tensors, r=32)
    parameters = {f"{Q}.weight": matrix(24, 20, seed=2)}
    change = 0.25 * tensors[f"{Q}.lora_B.weight"][1] @ tensors[f"{Q}.lora_A.weight"][1]
    row = rows(numbers(base, adapter))[f"{Q}.weight"]
    assert row["rank"] is None
    assert row["norm"] == pytest.approx(np.linalg.norm(change), rel=DIGITS)
    assert row["share"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(parameters[f"{Q}.weight"]), rel=1e-3)


def test_a_module_is_not_dead_for_its_bias_of_zeros(tmp_path: Path) -> None:
    scale = 1 + matrix(24, 1, seed=3)
    base = write_base(
        tmp_path / "base",
        [{f"{Q}.weight": ("BF16", matrix(24, 20, seed=2)), f"{Q}.bias": ("BF16", np.zeros(24))}],
    )
    adapter = write_adapter(
        tmp_path / "adapter",
        {f"{Q}.ia3_l": ("F32", scale)},
        peft_type="IA3",
        target_modules=["q_proj"],
        feedforward_modules=[],
    )
    found = numbers(base, adapter)
    assert rows(found)[f"{Q}.bias"]["norm"] == 0 < rows(found)[f"{Q}.weight"]["norm"]
    assert found.findings == []


def test_a_change_larger_than_its_weight_is_told_of_every_type(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(24, 20, seed=2))}])
    adapter = write_adapter(
        tmp_path / "adapter",
        {f"{Q}.ia3_l": ("F32", np.full((24, 1), 1 + 2 * LARGE))},
        peft_type="IA3",
        target_modules=["q_proj"],
        feedforward_modules=[],
    )
    (finding,) = numbers(base, adapter).findings
    assert (finding.code, finding.where) == ("update-large", Q)
    assert "2.0 times" in finding.message


def one_element(kind: str, weight: float, change: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """An adapter that adds `change` to the element (7, 3) of a weight that holds `weight` there."""
    a, b = np.zeros((4, 20)), np.zeros((24, 4))
    if kind == "factors":
        a[1, 3], b[7, 1] = change**0.5, change**0.5
        return {f"{Q}.lora_A.weight": ("F32", a), f"{Q}.lora_B.weight": ("F32", b)}, {"lora_alpha": 4}
    a[1, 3], b[7, 1] = (change / weight) ** 0.5, (change / weight) ** 0.5
    return {f"{Q}.hira_A": ("F32", a), f"{Q}.hira_B": ("F32", b)}, {"peft_type": "HIRA"}


@pytest.mark.parametrize("kind", ["factors", "blocks"])
@pytest.mark.parametrize(
    ("weight", "change", "beyond"),
    [(0.5, 6e4, []), (0.5, 7e4, ["float16"]), (3.38e38, 2e36, ["float16", "bfloat16"])],
)
def test_what_a_merge_refuses_for_the_range_of_a_type_is_told_before(
    tmp_path: Path, kind: str, weight: float, change: float, beyond: list[str]
) -> None:
    values = matrix(24, 20, seed=2)
    values[7, 3] = weight
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F32", values)}])
    tensors, config = one_element(kind, weight, change)
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["q_proj"], **config)
    found = numbers(base, adapter).facts["overflows"]
    assert [dtype for dtype, names in found.items() if names] == beyond
    for dtype in found:
        if dtype in beyond:
            with pytest.raises(RegistryError, match="exceed the range"):
                merge_folder(base, [(adapter, 1.0)], tmp_path / dtype, dtype=dtype, min_kept=None)
        else:
            merge_folder(base, [(adapter, 1.0)], tmp_path / dtype, dtype=dtype, min_kept=None)


def test_factors_that_cancel_each_other_are_not_beyond_a_range(tmp_path: Path) -> None:
    """The bound from the factors says nothing of them; the sums do."""
    column = 300 * np.ones((24, 1))
    tensors = {
        f"{Q}.lora_A.weight": ("F32", np.vstack([column[:20].T, column[:20].T])),
        f"{Q}.lora_B.weight": ("F32", np.hstack([column, -column * (1 - 2**-10)])),
    }
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(24, 20, seed=2))}])
    found = numbers(base, write_adapter(tmp_path / "adapter", tensors, r=2, lora_alpha=2, target_modules=["q_proj"]))
    assert found.facts["overflows"] == {"float16": [], "bfloat16": []}


def test_what_has_no_merged_form_keeps_a_note(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", matrix(24, 20, seed=2))}])
    folder = write_adapter(tmp_path / "adapter", {}, peft_type="PROMPT_TUNING", num_virtual_tokens=4)
    write_safetensors(folder / "adapter_model.safetensors", {"prompt_embeddings": ("F32", matrix(4, 20, seed=1))})
    found = numbers(base, folder)
    assert found.state == "passed"
    assert [(finding.code, finding.severity) for finding in found.findings] == [("no-merged-form", "note")]
    assert "virtual tokens" in found.findings[0].message


def test_values_that_a_merge_refuses_are_a_warning(tmp_path: Path) -> None:
    """DoRA divides by the norm of an output, which is zero."""
    tensors = dict(pair(Q, out=24, in_=20, r=4, seed=1))
    tensors[f"{Q}.lora_B.weight"][1][5] = 0
    weight = matrix(24, 20, seed=2)
    weight[5] = 0
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("BF16", weight)}])
    tensors[f"{Q}.lora_magnitude_vector"] = ("F32", np.ones(24))
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["q_proj"], use_dora=True)
    found = numbers(base, adapter)
    assert [(finding.code, finding.severity) for finding in found.findings] == [("change-refused", "warning")]
    assert "DoRA divides by their norm" in found.findings[0].message


def test_a_base_with_nan_is_told_and_gives_no_figure(tmp_path: Path) -> None:
    weight = matrix(24, 20, seed=2)
    weight[3, 3] = np.nan
    base = write_base(tmp_path / "base", [{f"{Q}.weight": ("F32", weight)}])
    found = numbers(base, write_adapter(tmp_path / "adapter", pair(Q, out=24, in_=20, r=4, seed=1)))
    row = rows(found)[f"{Q}.weight"]
    assert (row["norm"], row["share"], row["stable_rank"]) == (None, None, None)
    assert [finding.code for finding in found.findings] == ["update-not-finite"]


def test_memory_stays_small_whatever_the_size(tmp_path: Path) -> None:
    """A change of 2^27 elements, half a gigabyte in float32, is more than what is held for its spectral norm."""
    rows, columns = 1 << 13, 1 << 14
    name = "model.layers.0.mlp.up_proj"
    folder = write_base(tmp_path / "base", [{f"{name}.weight": ("BF16", np.zeros((0, columns)))}])
    sparse(folder / "model.safetensors", f"{name}.weight", rows, columns)
    values = matrix(1000, seed=1)
    random = np.random.default_rng(4)
    places = random.choice(rows * columns, 1000, replace=False)
    indices = np.stack([places // columns, places % columns])
    adapter = write_adapter(
        tmp_path / "adapter",
        {f"{name}.shira_weight": ("F32", values), f"{name}.shira_indices": ("I64", indices)},
        peft_type="SHIRA",
        target_modules=["up_proj"],
    )
    script = (
        "import re, sys; from pathlib import Path; from lora_kernels.validating import numbers\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 1024\n"
        "before = peak(); found = numbers.numbers(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "row = found.facts['modules'][0]; print(before, peak(), row['norm'], row['stable_rank'])"
    )
    command = [sys.executable, "-c", script, str(folder), str(adapter)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after, norm, rank = done.stdout.split()
    assert float(norm) == pytest.approx(np.linalg.norm(values.astype(np.float32)), rel=DIGITS)
    assert rank == "None"
    assert float(after) - float(before) < 50


def sparse(path: Path, name: str, rows: int, columns: int) -> None:
    """A file of one bfloat16 tensor of zeros, which takes no room."""
    size = 2 * rows * columns
    header = json.dumps({name: {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


@pytest.mark.parametrize("shape", [(300, 300), (700, 120), (40, 900), (1, 1), (5, 3)])
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e30])
def test_the_spectral_norm_is_that_of_a_full_decomposition(shape: tuple[int, int], size: float) -> None:
    values = np.random.default_rng(7).standard_normal(shape).astype(np.float32) * np.float32(size)
    right = np.linalg.svd(values.astype(np.float64), compute_uv=False)[0]
    assert spectral_norm(values.copy(), name="x") == pytest.approx(right, rel=SPECTRAL)


def test_the_spectral_norm_of_nothing_is_nothing() -> None:
    assert spectral_norm(np.zeros((4, 4), np.float32), name="x") == 0
    assert spectral_norm(np.full((4, 4), np.inf, np.float32), name="x") is None
