"""LoRA on the experts of real small models, saved by transformers and PEFT: fused on disk, and a module per expert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import read_model
from tests.kernels.types.lora.models import (
    adapted_logits,
    assert_merges,
    load_model,
    loaded,
    parameters64,
    peft_merged,
    save_adapter,
    save_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
TOKENS = torch.arange(12).reshape(1, 12)
BOTH = ("gate_up_proj", "down_proj")


def mixtral(**options: Any) -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**{**SIZES, "head_dim": 16, "num_local_experts": 5, **options})
    )


def qwen2_moe(**options: Any) -> Any:
    return transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **{**SIZES, "num_experts": 5, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, **options}
        )
    )


def gpt_oss(**options: Any) -> Any:
    return transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **{**SIZES, "head_dim": 16, "num_local_experts": 5, "layer_types": ["full_attention"] * 2, **options}
        )
    )


MODELS: dict[str, Callable[..., Any]] = {"mixtral": mixtral, "qwen2_moe": qwen2_moe, "gpt_oss": gpt_oss}


def experts(*parameters: str) -> dict[str, tuple[str, ...]]:
    return {f"model.layers.{layer}.mlp.experts": parameters for layer in range(2)}


@pytest.mark.parametrize("targets", [BOTH, ("down_proj",), ("gate_up_proj",)])
@pytest.mark.parametrize("family", MODELS)
def test_experts(tmp_path: Path, family: str, targets: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = MODELS[family]()
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj"],
        target_parameters=[f"mlp.experts.{name}" for name in targets],
        rank_pattern={"mlp.experts.down_proj": 2},
        alpha_pattern={r".*\.gate_up_proj": 4},
    )
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    parameters = parameters64(model)
    _, right = assert_merges(tmp_path, base, parameters, [(adapter, 1.0)], load=loaded, experts=experts(*targets))
    assert {name.rpartition(".")[2] for name in right} == {"weight", *targets}
    merged = peft_merged(model, [adapter])
    for name, values in loaded(tmp_path / "wide").items():
        bound = 2 * right[name].float32_error + 2.0**-23 * np.abs(values) if name in right else 0
        assert (np.abs(values - merged[name]) <= bound).all(), name
    assert list(read_model(tmp_path / "wide")) == list(read_model(base))
    with torch.no_grad():
        got = load_model(tmp_path / "wide")(TOKENS).logits
        plain = load_model(base)(TOKENS).logits
    want = adapted_logits(load_model(base), adapter, TOKENS)
    assert (got - want).abs().max() < 1e-5 < (plain - want).abs().max()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_two_weighted_adapters(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    model = MODELS[family]()
    base = save_model(model, tmp_path / "base")
    adapters = []
    for seed, weight in enumerate((0.7, -0.4)):
        config = LoraConfig(r=2 + seed, lora_alpha=5, target_modules=[], target_parameters=list(BOTH))
        adapters.append((save_adapter(model, config, tmp_path / f"a{seed}", seed=seed), weight))
    assert_merges(tmp_path, base, parameters64(model), adapters, load=loaded, experts=experts(*BOTH))


def test_blocks_may_begin_and_end_inside_an_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = gpt_oss()
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=list(BOTH))
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    for block in (40, 7 * 48, 7 * 96):  # a piece of a row; seven rows, which divide no expert
        monkeypatch.setattr("lora_kernels.numeric.blocks.BLOCK", block)
        monkeypatch.setattr("lora_kernels.merging.tensor.BLOCK", block)
        folder = tmp_path / str(block)
        assert_merges(folder, base, parameters64(model), [(adapter, 1.0)], load=loaded, experts=experts(*BOTH))


def test_router_targeted_as_a_parameter_has_its_own_pattern(tmp_path: Path) -> None:
    """PEFT turns v4's target_modules w1, w2, w3 and gate into these parameters, of twice the rank where two joined."""
    torch.manual_seed(0)
    model = mixtral()
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["w1", "w2", "w3", "gate"])
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    saved = json.loads((adapter / "adapter_config.json").read_text())
    assert saved["rank_pattern"] and "gate.weight" in saved["target_parameters"]
    assert_merges(tmp_path, base, parameters64(model), [(adapter, 1.0)], load=loaded, experts=experts(*BOTH))


def test_patterns_of_a_router_name_its_parameter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mixtral()
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=["gate.weight"],
        rank_pattern={"gate.weight": 2}, alpha_pattern={"mlp.gate": 77, "gate.weight": 1},
    )  # fmt: skip
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    parameters = parameters64(model)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out", dtype="float32")
    merged = peft_merged(model, [adapter])
    for name, values in loaded(tmp_path / "out").items():
        # Updates of one element are sums of two products of numbers below 1.
        assert np.abs(merged[name] - values).max() <= 8 * 2.0**-24, name
        assert (np.abs(parameters[name] - values).max() > 1e-4) == (".gate." in name or "q_proj" in name), name


def test_adapter_of_single_experts(tmp_path: Path) -> None:
    """As transformers 4 and PEFT saved it: a pair per expert and projection, on a checkpoint that has these modules."""
    torch.manual_seed(0)
    model = mixtral()
    base = save_model(model, tmp_path / "base")
    tensors, rng = {}, np.random.default_rng(5)
    before = {name: values for name, (_, values) in read_model(base).items()}
    for name, values in before.items():
        if ".experts." in name:
            out, in_ = values.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.tensor(0.1 * rng.standard_normal((3, in_)), dtype=torch.float32)
            tensors[f"{stem}.lora_B.weight"] = torch.tensor(0.1 * rng.standard_normal((out, 3)), dtype=torch.float32)
    folder = tmp_path / "a"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    assert_merges(
        tmp_path,
        base,
        {name: _float64(values) for name, values in before.items()},
        [(folder, 1.0)],
    )
    with torch.no_grad():
        got = load_model(tmp_path / "wide")(TOKENS).logits
    assert (got - adapted_logits(load_model(base), folder, TOKENS)).abs().max() < 1e-5


def as_before_0_19(folder: Path) -> None:
    """Exchange what A takes in and B gives out, keeping every expert's update: its transpose is B' A'."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".experts" in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        a, b = tensors[name], tensors[other]
        rank = a.shape[0] // 5
        stacked = b.reshape(b.shape[0], rank, 5).permute(2, 1, 0).reshape(rank * 5, b.shape[0])
        interleaved = a.reshape(5, rank, a.shape[1]).permute(2, 1, 0).reshape(a.shape[1], rank * 5)
        tensors[name], tensors[other] = stacked.contiguous(), interleaved.contiguous()
    save_file(tensors, path)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_version": "0.18.1"}))


@pytest.mark.parametrize("square", [False, True])
def test_layout_of_peft_before_0_19(tmp_path: Path, square: bool) -> None:
    torch.manual_seed(0)
    model = mixtral(intermediate_size=32) if square else mixtral()
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=list(BOTH))
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    _, right = assert_merges(tmp_path, base, parameters64(model), [(adapter, 1.0)], load=loaded, experts=experts(*BOTH))
    as_before_0_19(adapter)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "swapped", dtype="float32")
    for name, values in loaded(tmp_path / "swapped").items():
        if name in right:
            bound = right[name].float32_error + 2.0**-24 * np.abs(values)
            assert (np.abs(values - right[name].exact) <= bound).all(), name


@pytest.mark.parametrize("version", [None, "main", "0.19.0", "0.18.0", "1.0.0"])
def test_square_experts_go_by_the_version(tmp_path: Path, version: str | None) -> None:
    torch.manual_seed(0)
    model = qwen2_moe(moe_intermediate_size=32)
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=["down_proj"])
    adapter = save_adapter(model, config, tmp_path / "a", seed=1, edit={"peft_version": version})
    if version in (None, "main"):
        with pytest.raises(RegistryError, match="experts are square is not supported") as caught:
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
        assert caught.value.code == "unsupported" and "peft_version" in caught.value.detail
        return
    if version == "0.18.0":
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "oracle_takes_rows": True}))
    assert_merges(tmp_path, base, parameters64(model), [(adapter, 1.0)], load=loaded, experts=experts("down_proj"))


def test_square_experts_of_a_model_that_is_transposed(tmp_path: Path) -> None:
    """gpt_oss keeps (in, out), and its hidden and intermediate sizes are the same; every version reads it so."""
    torch.manual_seed(0)
    model = gpt_oss(intermediate_size=32)
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=["down_proj"])
    edit = {"oracle_takes_rows": True, "peft_version": None}
    adapter = save_adapter(model, config, tmp_path / "a", seed=1, edit=edit)
    _, right = assert_merges(
        tmp_path, base, parameters64(model), [(adapter, 1.0)], load=loaded, experts=experts("down_proj")
    )
    merged, got = peft_merged(model, [adapter]), loaded(tmp_path / "wide")
    for name, expected in right.items():
        bound = 2 * expected.float32_error + 2.0**-23 * np.abs(got[name])
        assert (np.abs(got[name] - merged[name]) <= bound).all(), name


@pytest.mark.parametrize("targets", [[], ["down_proj"], ["experts.other"]])
def test_pairs_without_a_name_are_refused(tmp_path: Path, targets: list[str]) -> None:
    torch.manual_seed(0)
    model = mixtral()
    base = save_model(model, tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=list(BOTH))
    adapter = save_adapter(model, config, tmp_path / "a", seed=1, edit={"target_parameters": targets})
    with pytest.raises(RegistryError, match=r"the file has 2 pairs for model\.layers\.0\.mlp\.experts") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected"


def _float64(raw: Any) -> Any:
    return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
