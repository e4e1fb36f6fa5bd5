"""Merges of every type beside LoRA: against PEFT in float32, and against the float64 oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from torch import nn  # noqa: E402

from lora_kernels.merging import merge_folder  # noqa: E402
from tests.kernels.checkpoints import read_model  # noqa: E402
from tests.kernels.types.cases import (  # noqa: E402
    Case,
    adapter_folder,
    base_folder,
    conv1ds,
    convolutions,
    linears,
    merged_by_peft,
)
from tests.support.oracle import compare_bf16  # noqa: E402
from tests.support.oracle_types import merge_types  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Of PEFT's own rank_pattern of a pruned AdaLoRA.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]

ODD = linears((101, 205), (205, 101), (99, 99))
EVEN = linears((96, 192), (192, 96), bias=True)
STORED_IN_OUT = conv1ds((101, 205), (205, 101))


EMBEDDING = lambda: {"transformer.wte": nn.Embedding(301, 67)}  # noqa: E731


def conv2d(in_: int, out: int, kernel: int, groups: int = 1) -> Any:
    return lambda: nn.Conv2d(in_, out, kernel, groups=groups)


def conv1d(in_: int, out: int, kernel: int) -> Any:
    return lambda: nn.Conv1d(in_, out, kernel)


CONVS = convolutions(conv2d(19, 45, 3), conv2d(31, 57, 1), conv2d(12, 30, 3))
BLOCK_CONVS = convolutions(conv2d(19, 45, 3), conv2d(36, 57, 1), conv2d(12, 30, 3))
CONVS_1D = convolutions(conv1d(35, 77, 3), conv1d(36, 80, 5))


def adalora(**options: Any) -> Any:
    return lambda: peft.AdaLoraConfig(
        init_r=6, target_r=3, lora_alpha=9, total_step=100, tinit=10, tfinal=20, **options
    )


def prune(model: nn.Module) -> None:
    """What the end of a training does: ranks gone from two modules, all of them from one."""
    pattern = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_E") and len(module.lora_E):
            kept = [True, False, True, True, False, True] if ".0." in name else [False] * 6
            plain = name.removeprefix("base_model.model.")
            pattern[f"{plain}.lora_E"] = kept
    model.peft_config["default"].rank_pattern = pattern


def loha(**options: Any) -> Any:
    return lambda: peft.LoHaConfig(r=7, alpha=5, **options)


def lokr(**options: Any) -> Any:
    return lambda: peft.LoKrConfig(alpha=5, **options)


def ia3(*targets: str, feedforward: Any, pattern: bool = False) -> Any:
    return lambda: peft.IA3Config(
        target_modules=".*proj" if pattern else list(targets), feedforward_modules=feedforward
    )


def vera(**options: Any) -> Any:
    return lambda: peft.VeraConfig(r=32, target_modules=["proj", "c_fc"], **options)


def oft(**options: Any) -> Any:
    return lambda: peft.OFTConfig(**{"r": 0, "oft_block_size": 4, **options})


def glora(**options: Any) -> Any:
    return lambda: peft.GloraConfig(r=5, target_modules=["proj"], **options)


def vblora(**options: Any) -> Any:
    return lambda: peft.VBLoRAConfig(
        **{"r": 4, "num_vectors": 30, "vector_length": 8, "target_modules": ["proj", "c_fc"], **options}
    )


def places(size: int, count: int) -> Any:
    """Of FourierFT and WaveFT, with the seed that they have by default."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(777))[:count].numpy()


def targeted(config: Any, *names: str) -> Any:
    def make() -> Any:
        made = config()
        made.target_modules = set(names)
        return made

    return make


PROJ, FC, CONV = ("proj",), ("c_fc",), ("conv",)

# A Neumann series of one term leaves every weight as it is.
IDENTITIES = {"oft-1-terms"}

CASES = [
    Case("adalora", targeted(adalora(), *PROJ), ODD),
    Case("adalora-pruned", targeted(adalora(), *PROJ), ODD, edit=prune),
    Case("adalora-conv1d", targeted(adalora(), *FC), STORED_IN_OUT, transposed=True),
    Case("adalora-conv2d", targeted(adalora(), *CONV), CONVS),
    Case("loha", targeted(loha(), *PROJ), ODD, size=0.3),
    Case("loha-patterns", targeted(loha(rank_pattern={"0.proj": 3}, alpha_pattern={"1.proj": 11}), *PROJ), ODD),
    Case("loha-conv2d", targeted(loha(), *CONV), CONVS, size=0.3),
    Case("loha-conv2d-effective", targeted(loha(use_effective_conv2d=True), *CONV), CONVS, size=0.3),
    Case("loha-conv1d-effective", targeted(loha(use_effective_conv2d=True), *CONV), CONVS_1D, size=0.3),
    Case("lokr", targeted(lokr(r=2), *PROJ), ODD),
    Case("lokr-whole", targeted(lokr(r=200), *PROJ), ODD),
    Case("lokr-both", targeted(lokr(r=2, decompose_both=True), *PROJ), linears((144, 210), (210, 144))),
    Case("lokr-factor", targeted(lokr(r=2, decompose_factor=3), *PROJ), EVEN),
    Case("lokr-conv2d", targeted(lokr(r=2), *CONV), CONVS),
    Case("lokr-conv2d-whole", targeted(lokr(r=64), *CONV), CONVS),
    Case("lokr-conv2d-effective", targeted(lokr(r=2, use_effective_conv2d=True), *CONV), CONVS),
    Case("lokr-conv1d-effective", targeted(lokr(r=2, use_effective_conv2d=True), *CONV), CONVS_1D),
    Case("lokr-conv1d-whole", targeted(lokr(r=64), *CONV), CONVS_1D),
    Case("ia3", ia3("proj", feedforward=[]), EVEN),
    Case("ia3-ff", ia3("0.proj", "1.proj", feedforward=["1.proj"]), EVEN),
    Case("ia3-ff-pattern", ia3("0.proj", "1.proj", feedforward=r".*\.1\.proj", pattern=True), EVEN),
    Case("ia3-conv1d", ia3("0.mlp.c_fc", "1.mlp.c_fc", feedforward=["1.mlp.c_fc"]), STORED_IN_OUT, transposed=True),
    Case("ia3-conv2d", ia3("conv", feedforward=[]), CONVS),
    Case(
        "ia3-conv2d-ff",
        ia3("conv", feedforward=["conv"]),
        convolutions(conv2d(19, 45, 3), conv2d(24, 40, 3, groups=4)),
    ),
    Case("vera", vera(), ODD, size=0.3),
    Case("vera-conv1d", vera(), STORED_IN_OUT, transposed=True, size=0.3),
    Case("pvera", lambda: peft.PveraConfig(r=24, target_modules=["proj"]), ODD, size=0.3),
    Case("oft", targeted(oft(), *PROJ), EVEN),
    Case("oft-odd-block", targeted(oft(oft_block_size=5), *PROJ), linears((105, 201), (205, 103))),
    Case("oft-r", targeted(oft(r=3, oft_block_size=0), *PROJ), linears((99, 201))),
    Case("oft-cayley", targeted(oft(use_cayley_neumann=False), *PROJ), EVEN),
    Case("oft-terms", targeted(oft(num_cayley_neumann_terms=7, oft_block_size=8), *PROJ), EVEN),
    *(
        Case(f"oft-{terms}-terms", targeted(oft(num_cayley_neumann_terms=terms), *PROJ), linears((32, 64)))
        for terms in (1, 2, 3, 4)
    ),
    Case("oft-coft", targeted(oft(coft=True, eps=0.02), *PROJ), EVEN),
    Case("oft-share", targeted(oft(block_share=True), *PROJ), EVEN),
    Case("oft-conv2d", targeted(oft(oft_block_size=9), *CONV), BLOCK_CONVS),
    Case(
        "boft",
        lambda: peft.BOFTConfig(boft_block_size=3, target_modules=["proj"]),
        linears((99, 205), (201, 77)),
    ),
    Case("boft-conv2d", lambda: peft.BOFTConfig(boft_block_size=3, target_modules=["conv"]), BLOCK_CONVS),
    Case("hra", lambda: peft.HRAConfig(r=4, target_modules=["proj"]), ODD, size=0.5),
    Case("hra-odd", lambda: peft.HRAConfig(r=3, target_modules=["proj"]), ODD, size=0.5),
    Case("hra-gs", lambda: peft.HRAConfig(r=4, apply_GS=True, target_modules=["proj"]), ODD, size=0.5),
    Case("hra-conv2d", lambda: peft.HRAConfig(r=4, target_modules=["conv"]), CONVS, size=0.5),
    Case("hira", lambda: peft.HiraConfig(r=5, target_modules=["proj"]), ODD, size=0.4),
    Case("hira-conv1d", lambda: peft.HiraConfig(r=5, target_modules=["c_fc"]), STORED_IN_OUT, transposed=True),
    Case("hira-conv2d", lambda: peft.HiraConfig(r=5, target_modules=["conv"]), CONVS, size=0.4),
    Case("hira-embedding", lambda: peft.HiraConfig(r=5, target_modules=["wte"]), EMBEDDING, size=0.4),
    Case("miss", lambda: peft.MissConfig(r=7, target_modules=["proj"]), ODD, size=0.03),
    Case("miss-divides", lambda: peft.MissConfig(r=8, target_modules=["proj"]), EVEN, size=0.03),
    Case("miss-mini", lambda: peft.MissConfig(r=8, mini_r=4, init_weights="mini", target_modules=["proj"]), EVEN),
    Case("miss-bat", lambda: peft.MissConfig(r=12, init_weights="bat", target_modules=["proj"]), EVEN),
    Case("road-1", lambda: peft.RoadConfig(variant="road_1", group_size=8, target_modules=["proj"]), EVEN, size=0.4),
    Case("road-2", lambda: peft.RoadConfig(variant="road_2", group_size=6, target_modules=["proj"]), EVEN, size=0.4),
    Case("road-4", lambda: peft.RoadConfig(variant="road_4", group_size=96, target_modules=["proj"]), EVEN, size=0.4),
    Case("delora", lambda: peft.DeloraConfig(r=6, delora_lambda=3, target_modules=["proj"]), ODD),
    Case("c3a", lambda: peft.C3AConfig(block_size=12, target_modules=["proj"]), EVEN, size=0.5),
    Case("fourierft", lambda: peft.FourierFTConfig(n_frequency=300, target_modules=["proj"]), ODD, size=5),
    Case(
        "fourierft-conv1d",
        lambda: peft.FourierFTConfig(n_frequency=90, target_modules=["c_fc"]),
        STORED_IN_OUT,
        transposed=True,
        size=5,
    ),
    Case("waveft", lambda: peft.WaveFTConfig(n_frequency=700, scaling=3, target_modules=["proj"]), ODD),
    Case(
        "waveft-plain",
        lambda: peft.WaveFTConfig(n_frequency=700, scaling=3, use_idwt=False, target_modules=["proj"]),
        ODD,
    ),
    Case(
        "waveft-conv1d",
        lambda: peft.WaveFTConfig(n_frequency=700, scaling=3, target_modules=["c_fc"]),
        STORED_IN_OUT,
        transposed=True,
    ),
    Case("shira", lambda: peft.ShiraConfig(r=3, random_seed=4, target_modules=["proj"]), ODD),
    Case("supertuning", lambda: peft.SupertuningConfig(sparsity=0.9, target_modules=["proj"]), ODD),
    Case("supertuning-hybrid", lambda: peft.SupertuningConfig(sparsity=0.9, r=4, target_modules=["proj"]), ODD),
    Case("gralora", lambda: peft.GraloraConfig(r=6, gralora_k=3, target_modules=["proj"]), EVEN),
    Case("gralora-hybrid", lambda: peft.GraloraConfig(r=8, gralora_k=4, hybrid_r=3, target_modules=["proj"]), EVEN),
    Case(
        "gralora-conv1d",
        lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=["c_fc"]),
        conv1ds((102, 206), (206, 102)),
        transposed=True,
    ),
    Case("deft", lambda: peft.DeftConfig(r=5, target_modules=["proj"]), ODD),
    Case("deft-alpha", lambda: peft.DeftConfig(r=5, alpha=8, init_weights=False, target_modules=["proj"]), ODD),
    Case("deft-relu", lambda: peft.DeftConfig(r=5, decomposition_method="relu", target_modules=["proj"]), ODD),
    Case("deft-para", lambda: peft.DeftConfig(r=5, para=True, target_modules=["proj"]), ODD),
    Case("deft-conv1d", lambda: peft.DeftConfig(r=5, target_modules=["c_fc"]), STORED_IN_OUT, transposed=True),
    Case("peanut", lambda: peft.PeanutConfig(r=6, depth=0, target_modules=["proj"]), ODD),
    Case("peanut-deep", lambda: peft.PeanutConfig(r=6, depth=2, act_fn="tanh", target_modules=["proj"]), ODD),
    Case("glora", glora(config_A_B="lora", config_C="none", config_D_E="vector"), EVEN),
    Case("glora-vector", glora(config_A_B="vector", config_C="none", config_D_E="constant"), EVEN),
    Case("glora-constant", glora(config_A_B="constant", config_C="none", config_D_E="none"), EVEN),
    Case("vblora", vblora(), linears((104, 208), (208, 104))),
    Case("vblora-top", vblora(save_only_topk_weights=True, topk=3), linears((104, 208), (208, 104))),
    Case("vblora-conv1d", vblora(), conv1ds((104, 208)), transposed=True),
    Case(
        "unilora", lambda: peft.UniLoraConfig(r=4, theta_d_length=99, save_indices=True, target_modules=["proj"]), ODD
    ),
    Case("randlora", lambda: peft.RandLoraConfig(r=9, randlora_alpha=90, target_modules=["proj"]), ODD),
    Case(
        "randlora-conv1d",
        lambda: peft.RandLoraConfig(r=9, randlora_alpha=90, target_modules=["c_fc"]),
        STORED_IN_OUT,
        transposed=True,
    ),
    Case("tinylora", lambda: peft.TinyLoraConfig(r=3, u=4, weight_tying=1.0, target_modules=["proj"]), ODD, size=0.5),
    Case("beft", lambda: peft.BeftConfig(target_modules=["proj"]), linears((8, 15000), bias=True)),
    Case("poly", lambda: peft.PolyConfig(r=5, n_skills=3, target_modules=["proj"]), ODD, size=0.3),
    Case(
        "poly-splits", lambda: peft.PolyConfig(r=4, n_splits=4, target_modules=["proj"]), linears((96, 192)), size=0.3
    ),
    Case("c3a-odd", lambda: peft.C3AConfig(block_size=5, target_modules=["proj"]), linears((105, 200)), size=0.5),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_peft_in_float32(tmp_path: Path, case: Case) -> None:
    base = base_folder(case, tmp_path / "base", "F32")
    adapter = adapter_folder(case, tmp_path / "adapter", "F32")
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", min_kept=None)
    theirs = merged_by_peft(case, [adapter])
    right = merge_types(base, [(adapter, 1.0)], FC if case.transposed else (), places)
    ours = read_model(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    moved = [np.abs(merged.exact - merged.base).max() for merged in right.values()]
    assert max(moved) > 1e-4 or case.name in IDENTITIES
    for name, (_, values) in ours.items():
        assert values.shape == theirs[name].shape
        # Both stay within float32's own error of the exact merge; untouched tensors are equal.
        bound = 2 * right[name].float32_error if name in right else 0
        apart = np.abs(values.astype(np.float64) - theirs[name])
        assert (apart <= bound).all(), (name, float((apart / np.maximum(bound, 1e-300)).max()))


@pytest.mark.parametrize("weight", [1.0, -0.4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_correctly_rounded_float64_merge(tmp_path: Path, case: Case, weight: float) -> None:
    base = base_folder(case, tmp_path / "base", "BF16")
    adapter = adapter_folder(case, tmp_path / "adapter", "BF16")
    report = merge_folder(base, [(adapter, weight)], tmp_path / "out", min_kept=None)
    right = merge_types(base, [(adapter, weight)], FC if case.transposed else (), places)
    got = read_model(tmp_path / "out")
    found = [compare_bf16(got[name][1], expected) for name, expected in right.items()]
    assert sum(one.beyond_float32 for one in found) == 0
    assert sum(one.differing for one in found) <= max(1, sum(one.elements for one in found) // 10_000)
    assert {tensor.name for tensor in report.tensors} == set(right)
