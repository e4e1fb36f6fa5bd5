"""LoRA on every kind of layer, with its variants: against float64 and against PEFT's own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import matrix, pair, read_model, write_adapter, write_base, write_safetensors
from tests.kernels.types.lora.models import (
    assert_is_pefts,
    assert_merges,
    compare_folder,
    make_layers,
    parameters64,
    peft_merged,
    randomize,
    save_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONVOLUTIONS = ["conv1", "conv2", "conv3", "point"]
CASES: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["narrow", "wide"]},
    "rslora-patterns": {
        "target_modules": ["narrow", "wide", "conv2"],
        "use_rslora": True,
        "rank_pattern": {"wide": 5},
        "alpha_pattern": {"narrow": 3},
    },
    "embedding": {"target_modules": ["embed_tokens"]},
    "convolutions": {"target_modules": CONVOLUTIONS},
    "attention": {"target_modules": ["attention"]},
    "attention-patterns": {
        "target_modules": ["attention"],
        "rank_pattern": {"attention": 3},
        "alpha_pattern": {"attention": 5, "out_proj": 99},
    },
    "dora": {"target_modules": ["narrow", "wide"], "use_dora": True},
    "dora-embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "dora-convolutions": {"target_modules": CONVOLUTIONS, "use_dora": True},
    "lora-bias": {"target_modules": ["narrow", "conv2", "conv1"], "lora_bias": True},
    "bias-all": {"target_modules": ["narrow"], "bias": "all"},
    "bias-lora-only": {"target_modules": ["narrow", "conv2"], "bias": "lora_only"},
    "saved-container": {"target_modules": ["narrow"], "modules_to_save": ["attention"]},
    "fan-in-fan-out": {"target_modules": ["narrow", "wide"], "fan_in_fan_out": True},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["wide", "attention.out_proj"]},
    "mica": {"target_modules": ["narrow", "embed_tokens"], "init_lora_weights": "mica"},
    "velora": {"target_modules": ["narrow", "wide"], "velora_config": VeloraConfig(num_groups=1)},
    "monteclora": {"target_modules": ["narrow", "wide"], "monteclora_config": MontecloraConfig()},
    "tokens": {"target_modules": ["narrow"], "trainable_token_indices": {"embed_tokens": [3, 66, 0]}},
}


@pytest.mark.parametrize("name", CASES)
def test_one_adapter(tmp_path: Path, name: str) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **CASES[name]}), tmp_path / "a", seed=1)
    report, right = assert_merges(tmp_path, base, parameters64(model), [(adapter, 1.0)])
    assert {tensor.name for tensor in report.tensors} == set(right) != set()
    # PEFT sums squares of DoRA's norms in float32.
    assert_is_pefts(tmp_path / "wide", peft_merged(model, [adapter]), right, times=8 if "dora" in name else 2)


@pytest.mark.parametrize("weight", [0.37, -1.0, 0.0])
@pytest.mark.parametrize(
    "name", ["linear", "convolutions", "attention", "dora", "dora-embedding", "lora-bias", "tokens"]
)
def test_weighted(tmp_path: Path, name: str, weight: float) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **CASES[name]}), tmp_path / "a", seed=1)
    assert_merges(tmp_path, base, parameters64(model), [(adapter, weight)])
    if not weight:
        bits = {tensor: raw.tobytes() for tensor, (_, raw) in read_model(base).items()}
        assert {tensor: raw.tobytes() for tensor, (_, raw) in read_model(tmp_path / "narrow").items()} == bits


TARGETS = ["narrow", "wide", "embed_tokens", "conv2"]


@pytest.mark.parametrize("dora", [(True, True), (True, False), (False, True)])
def test_several_adapters_in_their_order(tmp_path: Path, dora: tuple[bool, ...]) -> None:
    """A norm is that of the weight before any adapter, whatever was merged before."""
    model, base = make_layers(tmp_path / "base")
    adapters = [
        save_adapter(
            model, LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_dora=on), tmp_path / f"a{seed}", seed=seed
        )
        for seed, on in enumerate(dora)
    ]
    _, right = assert_merges(tmp_path, base, parameters64(model), [(folder, 1.0) for folder in adapters])
    merge_folder(base, [(folder, 1.0) for folder in reversed(adapters)], tmp_path / "reversed", dtype="float32")
    apart = [
        np.abs(read_model(tmp_path / "wide")[name][1] - read_model(tmp_path / "reversed")[name][1]).max()
        for name in right
    ]
    assert min(apart) > 1e-3
    # PEFT takes the first adapter out again for the norm, which rounds twice more.
    assert_is_pefts(tmp_path / "wide", peft_merged(model, adapters), right, times=8)


def test_weighted_dora_among_others(tmp_path: Path) -> None:
    differing = elements = 0
    for seed in range(8):
        folder = tmp_path / str(seed)
        model, base = make_layers(folder / "base", seed=seed)
        configs = [LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_dora=on) for on in (True, False, True)]
        adapters = [
            (save_adapter(model, config, folder / f"a{place}", seed=10 * seed + place), weight)
            for place, (config, weight) in enumerate(zip(configs, (0.6, -0.3, 1.2), strict=True))
        ]
        _, right = assert_merges(folder, base, parameters64(model), adapters)
        found = compare_folder(folder / "narrow", right)
        differing, elements = differing + found.differing, elements + found.elements
    assert differing <= elements / 10_000, f"{differing} of {elements}"


def test_norms_are_streamed_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 elements give what one block gives, in either direction of the norm."""
    model, base = make_layers(tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=[*TARGETS, *CONVOLUTIONS], use_dora=True)
    adapters = [(save_adapter(model, config, tmp_path / f"a{seed}", seed=seed), 0.5) for seed in range(2)]
    monkeypatch.setattr("lora_kernels.numeric.blocks.BLOCK", 64)
    monkeypatch.setattr("lora_kernels.merging.tensor.BLOCK", 64)
    assert_merges(tmp_path, base, parameters64(model), adapters)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_block_diagonal_factors(tmp_path: Path, blocks: int) -> None:
    model, base = make_layers(tmp_path / "base")
    diagonal = BdLoraConfig(
        target_modules_bd_a=["eve"], target_modules_bd_b=["wid"], nblocks=blocks, match_strict=False
    )
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["narrow", "wide", "even"], use_bdlora=diagonal)
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    assert read_model(adapter)["base_model.model.even.lora_A.weight"][1].shape == (4, 96 // blocks)
    _, right = assert_merges(tmp_path, base, parameters64(model), [(adapter, 1.0)])
    assert_is_pefts(tmp_path / "wide", peft_merged(model, [adapter]), right)


def test_grouped_convolution_is_refused_by_name(tmp_path: Path) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(r=4, target_modules=["grouped"]), tmp_path / "a", seed=1)
    with pytest.raises(
        RegistryError, match="convolution with groups is not supported; the adapter uses it for grouped"
    ) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported"


def test_bias_that_the_base_has_not_is_refused(tmp_path: Path) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(r=4, target_modules=["wide"], lora_bias=True), tmp_path / "a", seed=1)
    with pytest.raises(RegistryError, match=r"bias of .*, which the base does not have") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected" and "wide" in caught.value.detail


def test_output_without_direction_is_named(tmp_path: Path) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(
        model, LoraConfig(r=4, target_modules=["narrow"], use_dora=True), tmp_path / "a", seed=1, size=0
    )
    tensors = {name: (dtype, values.copy()) for name, (dtype, values) in read_model(base).items()}
    tensors["narrow.weight"][1][5] = 0
    write_safetensors(base / "model.safetensors", tensors)
    with pytest.raises(RegistryError, match=r"narrow: 1 outputs .* are zero") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "rejected"


def test_state_of_the_training_is_ignored_by_name(tmp_path: Path) -> None:
    model, base = make_layers(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["narrow"], velora_config=VeloraConfig(num_groups=1))
    adapter = save_adapter(model, config, tmp_path / "a", seed=1)
    report = merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert report.ignored == ("base_model.model.narrow.lora_velora_embed",)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "velora_config": None}))
    with pytest.raises(RegistryError, match="lora_velora_embed is unexpected"):
        merge_folder(base, [(adapter, 1.0)], tmp_path / "other")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_converted_inits_are_plain_lora(tmp_path: Path, init: str) -> None:
    """Saved as it is, the adapter is an update of a base that its init has changed; converted, of the base itself."""
    from peft import get_peft_model

    model, base = make_layers(tmp_path / "base", dtype=torch.float32)
    parameters = parameters64(model)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=["narrow"], init_lora_weights=init))
    config = adapted.peft_config["default"]
    config.init_lora_weights, config.auto_mapping = True, None
    adapted.save_pretrained(str(tmp_path / "start"))
    config.init_lora_weights = init
    randomize(adapted, seed=1, size=0.1)
    adapted.save_pretrained(str(tmp_path / "raw"))
    adapted.save_pretrained(
        str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    want = {name: value.double().numpy() for name, value in adapted.merge_and_unload().state_dict().items()}
    for folder in ("raw", "converted"):
        path = tmp_path / folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_mapping": None}))
    with pytest.raises(RegistryError, match=f"init_lora_weights = '{init}'") as caught:
        merge_folder(base, [(tmp_path / "raw", 1.0)], tmp_path / "refused")
    assert caught.value.code == "unsupported"
    assert_merges(tmp_path, base, parameters, [(tmp_path / "converted", 1.0)])
    # PEFT has subtracted and added parts of the weight's own size, each rounded.
    np.testing.assert_allclose(
        read_model(tmp_path / "wide")["narrow.weight"][1], want["narrow.weight"], rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(
    ("targets", "edit"), [(["attention"], {"use_dora": True}), (["narrow"], {"use_dora": True, "lora_bias": True})]
)
def test_combinations_that_peft_does_not_make_are_refused(
    tmp_path: Path, targets: list[str], edit: dict[str, Any]
) -> None:
    model, base = make_layers(tmp_path / "base")
    adapter = save_adapter(model, LoraConfig(r=4, target_modules=targets), tmp_path / "a", seed=1, edit=edit)
    with pytest.raises(RegistryError, match="DoRA together with lora_bias or on packed attention") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported"


def test_attention_of_a_later_peft_is_refused(tmp_path: Path) -> None:
    """Up to 0.21 PEFT adds the update of out_proj twice; a later one may have learned better."""
    model, base = make_layers(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["attention"])
    adapter = save_adapter(model, config, tmp_path / "a", seed=1, edit={"peft_version": "0.22.0"})
    with pytest.raises(RegistryError, match=r"packed attention, saved by PEFT 0\.22\.0 is not supported") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported" and caught.value.facts["module"] == "attention"


@pytest.mark.parametrize("transposed", [True, False])
def test_fan_in_fan_out_on_a_base_of_an_unknown_type_goes_by_the_shapes(tmp_path: Path, transposed: bool) -> None:
    """What a square weight cannot tell, the others of the adapter do; where none does the merge is refused."""
    flip = np.transpose if transposed else np.asarray
    weights = {"a": matrix(16, 16, seed=1), "b": matrix(24, 16, seed=2), "c": matrix(16, 16, seed=3)}
    stored = {f"h.{name}.weight": ("F32", np.ascontiguousarray(flip(value))) for name, value in weights.items()}
    base = write_base(tmp_path / "base", [stored], model_type="novel")
    pairs = {**pair("h.a", out=16, in_=16, r=4, seed=4), **pair("h.b", out=24, in_=16, r=4, seed=5)}
    adapter = write_adapter(tmp_path / "adapter", pairs, fan_in_fan_out=True)
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    merged = read_model(tmp_path / "out")
    for name in ("a", "b"):
        down, up = (pairs[f"h.{name}.lora_{half}.weight"][1].astype(np.float32).astype(np.float64) for half in "AB")
        expected = flip(weights[name].astype(np.float32) + 2 * up @ down)
        np.testing.assert_allclose(merged[f"h.{name}.weight"][1], expected, rtol=0, atol=1e-6)
    alone = write_adapter(tmp_path / "alone", pair("h.c", out=16, in_=16, r=4, seed=4), fan_in_fan_out=True)
    with pytest.raises(
        RegistryError, match=r"unknown whether its weight is stored as \(in, out\) or \(out, in\)"
    ) as caught:
        merge_folder(base, [(alone, 1.0)], tmp_path / "refused")
    assert caught.value.code == "unsupported" and caught.value.facts["module"] == "h.c"
