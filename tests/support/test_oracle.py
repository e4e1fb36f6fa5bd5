"""The oracle itself: its rounding against every bf16 number, its merges against PEFT run in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.oracle import (
    Bf16Comparison,
    compare_bf16,
    from_bf16,
    merge64,
    read_checkpoint,
    read_safetensors,
    round_bf16,
)
from tests.support.testbed import ROOT, require_testbed

TINY = ROOT / "examples" / "tiny"
TINY_ADAPTERS = ["logs", "queries-v1", "queries-v2", "queries-v3"]
TESTBED_ADAPTERS = [
    "lora-embed-prose",
    "lora-lmhead-cheader",
    "lora-patterns-python",
    "lora-r16-alllinear-prose",
    "lora-r8-qv-python",
    "rslora-r16-cheader",
    "series-sql/v1",
    "series-sql/v2",
    "series-sql/v3",
]
POSITIVE_FINITE = np.arange(0x7F80, dtype=np.uint16)


def peft_merge(base: Path, adapter: Path, *, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Merge with PEFT, base and adapter both in `dtype`; return the merged model's tensors."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    adapted = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    # PEFT reads the adapter into parameters of the base's dtype.
    adapted.to(dtype)
    return dict(adapted.merge_and_unload().state_dict())


def to_bits(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return tensor.contiguous().view(torch.uint16).numpy()


def assert_equals_peft(base: Path, adapter: Path) -> None:
    """Every tensor that the oracle merges equals PEFT's in float64, and PEFT changes no other."""
    merged, before = merge64(base, adapter), read_checkpoint(base)
    after = peft_merge(base, adapter, dtype=torch.float64)
    assert set(after) == set(before)
    for name, tensor in after.items():
        expected = merged[name].exact if name in merged else before[name]
        assert np.abs(tensor.numpy() - expected).max() <= 1e-12, name
    assert all(np.any(each.exact != each.base) for each in merged.values())


def assert_float32_merge_is_explained(base: Path, adapter: Path) -> None:
    """A float32 merge that is rounded once differs in few elements, all of them within float32's own error."""
    merged = merge64(base, adapter)
    after = peft_merge(base, adapter, dtype=torch.float32)
    found = [compare_bf16(to_bits(after[name].to(torch.bfloat16)), each) for name, each in merged.items()]
    assert sum(each.beyond_float32 for each in found) == 0
    assert sum(each.differing for each in found) <= sum(each.elements for each in found) / 10_000


def made_adapter(tmp_path: Path, **lora: Any) -> Path:
    """Write an adapter for the tiny base with random weights, as PEFT saves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **lora))
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_bf16_number_rounds_to_itself() -> None:
    bits = np.concatenate([POSITIVE_FINITE, POSITIVE_FINITE | 0x8000, np.array([0x7F80, 0xFF80], np.uint16)])
    assert np.array_equal(round_bf16(from_bf16(bits)), bits)


def test_midpoints_go_to_the_even_neighbour_and_anything_beyond_them_to_the_nearer() -> None:
    values = from_bf16(POSITIVE_FINITE)
    middle = (values[:-1] + values[1:]) / 2
    lower, upper = POSITIVE_FINITE[:-1], POSITIVE_FINITE[1:]
    assert np.array_equal(round_bf16(middle), np.where(lower % 2 == 0, lower, upper))
    assert np.array_equal(round_bf16(np.nextafter(middle, 0)), lower)
    assert np.array_equal(round_bf16(np.nextafter(middle, np.inf)), upper)
    assert np.array_equal(round_bf16(-np.nextafter(middle, np.inf)), upper | 0x8000)


def test_overflow_rounds_to_infinity_only_from_the_midpoint_on() -> None:
    largest, beyond = 255 * 2.0**120, 255.5 * 2.0**120
    assert round_bf16(np.array([largest, np.nextafter(beyond, 0), beyond])).tolist() == [0x7F7F, 0x7F7F, 0x7F80]
    assert np.isnan(from_bf16(round_bf16(np.array([np.nan]))))[0]


def test_rounding_is_single_where_torch_rounds_twice() -> None:
    value = 1 + 2.0**-8 + 2.0**-40
    assert round_bf16(np.array([value])).tolist() == [0x3F81]
    assert to_bits(torch.tensor([value], dtype=torch.float64).to(torch.bfloat16)).tolist() == [0x3F80]


def test_reader_agrees_with_the_library(tmp_path: Path) -> None:
    torch.manual_seed(1)
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    written = {str(dtype): torch.randn(3, 5, dtype=torch.float64).to(dtype) for dtype in dtypes}
    written["empty"], written["scalar"] = torch.zeros(0, 4), torch.tensor(2.5)
    save_file(written, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = read_safetensors(tmp_path / "x.safetensors")
    assert set(read) == set(written)
    for name, tensor in written.items():
        assert np.array_equal(read[name], tensor.double().numpy()), name


def test_reader_joins_the_shards_of_a_checkpoint() -> None:
    expected: dict[str, torch.Tensor] = {}
    for shard in sorted((TINY / "base").glob("*.safetensors")):
        expected |= load_file(shard)
    read = read_checkpoint(TINY / "base")
    assert set(read) == set(expected)
    assert all(np.array_equal(read[name], tensor.double().numpy()) for name, tensor in expected.items())


@pytest.mark.parametrize("name", TINY_ADAPTERS)
def test_tiny_adapters_merge_as_peft_merges_them(name: str) -> None:
    assert_equals_peft(TINY / "base", TINY / "adapters" / name)
    assert_float32_merge_is_explained(TINY / "base", TINY / "adapters" / name)


@pytest.mark.parametrize("name", TESTBED_ADAPTERS)
def test_testbed_adapters_merge_as_peft_merges_them(name: str) -> None:
    testbed = require_testbed()
    assert_equals_peft(testbed / "base", testbed / "adapters" / name)
    assert_float32_merge_is_explained(testbed / "base", testbed / "adapters" / name)


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
        {
            "r": 4,
            "lora_alpha": 8,
            "use_rslora": True,
            "target_modules": ["q_proj", "o_proj", "down_proj"],
            # Two keys that match one module, and a dot that stands for any character.
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 16, "layers.3.mlp.down_proj": 3},
            "alpha_pattern": {"down_proj": 5, "layers.3.mlp.down_proj": 7},
        },
    ],
    ids=["embedding", "lm_head-rslora", "modules_to_save", "overlapping-patterns"],
)
def test_made_adapters_merge_as_peft_merges_them(tmp_path: Path, lora: dict[str, Any]) -> None:
    adapter = made_adapter(tmp_path, **lora)
    assert_equals_peft(TINY / "base", adapter)
    assert_float32_merge_is_explained(TINY / "base", adapter)


def test_weight_scales_the_delta() -> None:
    full = merge64(TINY / "base", TINY / "adapters" / "logs")
    part = merge64(TINY / "base", TINY / "adapters" / "logs", -0.25)
    assert set(part) == set(full)
    for name, whole in full.items():
        assert np.abs((part[name].exact - whole.base) + 0.25 * (whole.exact - whole.base)).max() <= 1e-15


def test_comparison_counts_ulps_across_zero_and_tells_what_float32_cannot_explain() -> None:
    merged = merge64(TINY / "base", TINY / "adapters" / "queries-v1")
    each = merged["model.layers.0.self_attn.q_proj.weight"]
    assert compare_bf16(each.bits, each) == Bf16Comparison(elements=each.bits.size, ulps={}, beyond_float32=0)
    wrong = each.bits.copy()
    wrong[0, :2] += 1
    wrong[1, 0] ^= 0x8000
    flipped = 2 * int(each.bits[1, 0] & 0x7FFF)
    assert compare_bf16(wrong, each) == Bf16Comparison(
        elements=each.bits.size, ulps={1: 2, flipped: 1}, beyond_float32=3
    )


def test_comparison_catches_a_merge_with_a_bf16_intermediate() -> None:
    """Equal loss proves nothing: PEFT's merge in bf16 throughout has the loss of the right one, and is not right."""
    merged = merge64(TINY / "base", TINY / "adapters" / "queries-v2")
    after = peft_merge(TINY / "base", TINY / "adapters" / "queries-v2", dtype=torch.bfloat16)
    found = [compare_bf16(to_bits(after[name]), each) for name, each in merged.items()]
    assert sum(each.beyond_float32 for each in found) > sum(each.elements for each in found) / 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias all"),
        ({"r": 4}, "rank 8, the config says 4"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(TINY / "adapters" / "queries-v1", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        merge64(TINY / "base", adapter)


def test_a_tensor_over_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers\.2\.input_layernorm\.weight: no tensor of a LoRA adapter"):
        merge64(TINY / "base", TINY / "broken" / "overwrites-base-norm")
