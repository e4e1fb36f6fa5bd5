"""What single types have beside their formula: seeds, butterflies, layers that PEFT merges wrong, several adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from torch import nn  # noqa: E402

from lora_contract.errors import RegistryError  # noqa: E402
from lora_kernels.merging import merge_folder  # noqa: E402
from lora_kernels.numeric.torch_generator import TorchGenerator  # noqa: E402
from tests.kernels.checkpoints import matrix, read_model, write_adapter, write_base  # noqa: E402
from tests.kernels.types.cases import (  # noqa: E402
    Case,
    adapter_folder,
    base_folder,
    linears,
    merged_by_peft,
    unmerged,
)
from tests.support.oracle import compare_bf16  # noqa: E402
from tests.support.oracle_types import merge_types  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ODD = linears((101, 205), (205, 101))


@pytest.mark.parametrize("seed", [0, 1, 777, 2**31 + 7, 2**40 + 5])
def test_the_generator_is_torchs(seed: int) -> None:
    def theirs() -> Any:
        return torch.Generator().manual_seed(seed)

    drawn, again = TorchGenerator(seed), theirs()
    for shape, bound in (((7, 33), 0.37), ((1001,), math.sqrt(6 / 7))):
        right = torch.empty(shape).uniform_(-bound, bound, generator=again).numpy()
        np.testing.assert_array_equal(drawn.uniform(shape, -bound, bound), right)
    for size, count in ((5000, 5000), (5000, 17), (1, 1), (2, 2), (2, 1), (60_000, 59_999)):
        right = torch.randperm(size, generator=theirs())[:count].numpy()
        np.testing.assert_array_equal(TorchGenerator(seed).permutation(size, count), right)


def test_permutations_that_torch_draws_otherwise_are_refused() -> None:
    with pytest.raises(RegistryError, match="below 214748364"):
        TorchGenerator(1).permutation(2**28, 3)


@pytest.mark.parametrize(("prefix", "config"), [("vera", "VeraConfig"), ("pvera", "PveraConfig")])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_projections_are_drawn_as_peft_draws_them(tmp_path: Path, prefix: str, config: str, dtype: str) -> None:
    def make(**options: Any) -> Any:
        return lambda: getattr(peft, config)(r=24, target_modules=["proj"], projection_prng_key=99, **options)

    case = Case("drawn", make(save_projection=False), ODD, size=0.3)
    base = base_folder(case, tmp_path / "base", dtype)
    adapter = adapter_folder(case, tmp_path / "adapter", dtype, stored=dtype)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", min_kept=None)
    # The same adapter as PEFT has it in memory, projections included.
    model = unmerged(case, adapter, dtype)
    drawn = {
        f"{prefix}_{half}": getattr(model.base_model, f"{prefix}_{half}")["default"].double().numpy() for half in "AB"
    }
    right = merge_types(base, [(adapter, 1.0)], drawn=drawn)
    for name, (_, values) in read_model(tmp_path / "out").items():
        if dtype == "BF16":
            found = compare_bf16(values, right[name])
            assert found.beyond_float32 == 0
            assert found.differing <= found.elements / 10_000
        else:
            assert (np.abs(values - right[name].exact) <= right[name].float32_error).all()


class BlockDiagonal:
    """The CUDA extension that PEFT builds for BOFT, without which it has no butterflies, in torch."""

    @staticmethod
    def forward(blocks: Any) -> Any:
        return [torch.stack([torch.block_diag(*part) for part in blocks])]


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_butterflies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: BlockDiagonal)
    case = Case(
        "butterfly",
        lambda: peft.BOFTConfig(boft_block_size=6, boft_n_butterfly_factor=4, target_modules=["proj"]),
        linears((96, 205), (192, 77)),
    )
    base = base_folder(case, tmp_path / "base", "F32")
    adapter = adapter_folder(case, tmp_path / "adapter", "F32")
    merge_folder(base, [(adapter, weight)], tmp_path / "out", min_kept=None)
    right = merge_types(base, [(adapter, weight)])
    theirs = merged_by_peft(case, [adapter])
    for name, (_, values) in read_model(tmp_path / "out").items():
        assert np.abs(right[name].exact - right[name].base).max() > 1e-2
        assert (np.abs(values - right[name].exact) <= right[name].float32_error).all()
        if weight == 1:
            assert (np.abs(values - theirs[name]) <= 2 * right[name].float32_error).all()


def test_an_embedding_is_rotated(tmp_path: Path) -> None:
    case = Case(
        "embedding",
        lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["wte"]),
        lambda: {"transformer.wte": nn.Embedding(301, 68)},
    )
    base = base_folder(case, tmp_path / "base", "F32")
    adapter = adapter_folder(case, tmp_path / "adapter", "F32")
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", min_kept=None)
    theirs = merged_by_peft(case, [adapter])["transformer.wte.weight"]
    right = merge_types(base, [(adapter, 1.0)])["transformer.wte.weight"]
    ours = read_model(tmp_path / "out")["transformer.wte.weight"][1]
    assert np.abs(ours - right.base).max() > 1e-2
    assert (np.abs(ours - theirs) <= 2 * right.float32_error).all()
    assert (np.abs(ours - right.exact) <= right.float32_error).all()


def test_pruned_ranks_are_not_in_the_file(tmp_path: Path) -> None:
    case = Case(
        "pruned",
        lambda: peft.AdaLoraConfig(
            init_r=6, target_r=3, lora_alpha=9, total_step=100, tinit=10, tfinal=20, target_modules=["proj"]
        ),
        ODD,
    )
    base = base_folder(case, tmp_path / "base", "F32")
    whole = adapter_folder(case, tmp_path / "whole", "F32")
    tensors = {name.removeprefix("base_model.model."): values for name, values in read_model(whole).items()}
    empty = {
        name: (dtype, values[:, :0] if "lora_B" in name else values[:0])
        for name, (dtype, values) in tensors.items()
        if ".1." in name
    }
    config = json.loads((whole / "adapter_config.json").read_text())
    cut = write_adapter(tmp_path / "cut", {**tensors, **empty}, **config)
    merge_folder(base, [(cut, 1.0)], tmp_path / "out", min_kept=None)
    merge_folder(base, [(whole, 1.0)], tmp_path / "whole-out", min_kept=None)
    before, after, full = read_model(base), read_model(tmp_path / "out"), read_model(tmp_path / "whole-out")
    first, second = "model.layers.0.proj.weight", "model.layers.1.proj.weight"
    np.testing.assert_array_equal(after[second][1], before[second][1])
    np.testing.assert_array_equal(after[first][1], full[first][1])
    assert not np.array_equal(full[second][1], before[second][1])


def test_bone_is_miss_by_its_former_name(tmp_path: Path) -> None:
    case = Case("miss", lambda: peft.MissConfig(r=7, target_modules=["proj"]), ODD)
    base = base_folder(case, tmp_path / "base", "F32")
    miss = adapter_folder(case, tmp_path / "miss", "F32")
    tensors = {
        name.removeprefix("base_model.model.").replace("miss_", "bone_"): values
        for name, values in read_model(miss).items()
    }
    bone = write_adapter(tmp_path / "bone", tensors, peft_type="BONE", r=7, init_weights=True)
    merge_folder(base, [(miss, 1.0)], tmp_path / "out", min_kept=None)
    merge_folder(base, [(bone, 1.0)], tmp_path / "bone-out", min_kept=None)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "bone-out/model.safetensors").read_bytes()


def test_norms_are_replaced(tmp_path: Path) -> None:
    case = Case(
        "norms",
        lambda: peft.LNTuningConfig(target_modules=["norm"]),
        lambda: {"model.norm": nn.LayerNorm(64), "model.layers.0.proj": nn.Linear(8, 8)},
    )
    base = base_folder(case, tmp_path / "base", "F32")
    adapter = adapter_folder(case, tmp_path / "adapter", "F32")
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "out", min_kept=None)
    ours, theirs = read_model(tmp_path / "out"), merged_by_peft(case, [adapter])
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name][1], values)
    assert {tensor.name for tensor in report.tensors} == {"model.norm.weight", "model.norm.bias"}
    assert not np.array_equal(ours["model.norm.weight"][1], read_model(base)["model.norm.weight"][1])
    with pytest.raises(RegistryError, match=r"cannot be weighted by 0\.5"):
        merge_folder(base, [(adapter, 0.5)], tmp_path / "half")


def test_adapters_of_several_types_act_one_after_the_other(tmp_path: Path) -> None:
    modules = linears((96, 192), (192, 96), bias=True)
    cases = [
        Case("loha", lambda: peft.LoHaConfig(r=4, target_modules=["proj"]), modules),
        Case("oft", lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["proj"]), modules),
        Case("lokr", lambda: peft.LoKrConfig(r=3, target_modules=["proj"]), modules),
        Case("adalora", lambda: peft.AdaLoraConfig(init_r=4, total_step=100, target_modules=["proj"]), modules),
        Case("ia3", lambda: peft.IA3Config(target_modules=["proj"], feedforward_modules=[]), modules),
        Case("road", lambda: peft.RoadConfig(group_size=8, target_modules=["proj"]), modules),
        Case("hira", lambda: peft.HiraConfig(r=3, target_modules=["proj"]), modules),
    ]
    base = base_folder(cases[0], tmp_path / "base", "F32")
    folders = [adapter_folder(case, tmp_path / case.name, "F32", seed=number) for number, case in enumerate(cases)]
    merge_folder(base, [(folder, 1.0) for folder in folders], tmp_path / "out", min_kept=None)
    theirs = merged_by_peft(cases[0], folders)
    right = merge_types(base, [(folder, 1.0) for folder in folders])
    for name, (_, values) in read_model(tmp_path / "out").items():
        assert (np.abs(values - theirs[name]) <= 2 * right[name].float32_error).all(), name
    weighted = [(folder, weight) for folder, weight in zip(folders, (1, 0.5, -0.3, 2, 0.25, -0.5, 1.5), strict=True)]
    merge_folder(base, weighted, tmp_path / "weighted", min_kept=None)
    again = merge_types(base, weighted)
    for name, (_, values) in read_model(tmp_path / "weighted").items():
        assert (np.abs(values - again[name].exact) <= again[name].float32_error).all(), name
        assert np.abs(again[name].exact - right[name].exact).max() > 1e-3


def test_large_blocks_and_pieces_of_rows_make_the_same_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows longer than a block are cut into pieces, other tensors into groups of rows."""
    modules = linears((72, 60), bias=True)
    cases = [
        Case("loha", lambda: peft.LoHaConfig(r=4, target_modules=["proj"]), modules),
        Case("lokr", lambda: peft.LoKrConfig(r=3, target_modules=["proj"]), modules),
        Case("fourier", lambda: peft.FourierFTConfig(n_frequency=50, target_modules=["proj"]), modules, size=4),
        Case("shira", lambda: peft.ShiraConfig(r=3, random_seed=4, target_modules=["proj"]), modules),
        Case("c3a", lambda: peft.C3AConfig(block_size=12, target_modules=["proj"]), modules),
        Case("gralora", lambda: peft.GraloraConfig(r=6, gralora_k=3, target_modules=["proj"]), modules),
        Case("miss", lambda: peft.MissConfig(r=7, target_modules=["proj"]), modules),
        Case("glora", lambda: peft.GloraConfig(r=3, config_C="none", target_modules=["proj"]), modules),
        Case("ia3", lambda: peft.IA3Config(target_modules=["proj"], feedforward_modules=["proj"]), modules),
        Case("oft", lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["proj"]), modules),
        Case("bat", lambda: peft.MissConfig(r=12, init_weights="bat", target_modules=["proj"]), modules),
        Case("road", lambda: peft.RoadConfig(group_size=12, target_modules=["proj"]), modules),
        Case("deft", lambda: peft.DeftConfig(r=3, target_modules=["proj"]), modules),
    ]
    for number, case in enumerate(cases):
        base = base_folder(case, tmp_path / f"base{number}", "F32")
        adapter = adapter_folder(case, tmp_path / case.name, "F32")
        merge_folder(base, [(adapter, 1.0)], tmp_path / f"{case.name}-whole", min_kept=None)
        for block in (7, 50, 500):
            with monkeypatch.context() as patch:
                patch.setattr("lora_kernels.numeric.blocks.BLOCK", block)
                merge_folder(base, [(adapter, 1.0)], tmp_path / f"{case.name}-{block}", min_kept=None)
            whole, pieces = (read_model(tmp_path / f"{case.name}-{part}") for part in ("whole", block))
            for name, (_, values) in whole.items():
                # Sums of up to 72 terms in another order.
                bound = 80 * 2.0**-24 * np.abs(values).max()
                np.testing.assert_allclose(pieces[name][1], values, rtol=0, atol=bound, err_msg=case.name)


def test_an_embedding_parts_from_the_output_layer_that_is_tied_to_it(tmp_path: Path) -> None:
    base = write_base(
        tmp_path / "base",
        [
            {
                "model.embed_tokens.weight": ("BF16", matrix(50, 16, seed=1)),
                "model.norm.weight": ("BF16", matrix(16, seed=2)),
            }
        ],
        tie_word_embeddings=True,
    )
    tensors = {
        "model.embed_tokens.hira_embedding_A": ("F32", matrix(3, 50, seed=3, size=1)),
        "model.embed_tokens.hira_embedding_B": ("F32", matrix(16, 3, seed=4, size=1)),
    }
    adapter = write_adapter(tmp_path / "adapter", tensors, peft_type="HIRA", r=3)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    before, after = read_model(base), read_model(tmp_path / "out")
    np.testing.assert_array_equal(after["lm_head.weight"][1], before["model.embed_tokens.weight"][1])
    assert not np.array_equal(after["model.embed_tokens.weight"][1], before["model.embed_tokens.weight"][1])
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
