"""Results quantized to NF4: transformers and bitsandbytes load them and see what the merge says they hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_contract.errors import RegistryError
from lora_contract.tensors import DTYPE_BYTES, parse_header
from lora_kernels.merging import merge_folder
from tests.kernels.merging import bnb_models as models

bnb = pytest.importorskip("bitsandbytes.functional")
pytest.importorskip("transformers")

TOUCHED = {f"{models.Q}.weight", f"{models.DOWN}.weight"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_llama(tmp_path_factory.mktemp("llama") / "full")


@pytest.fixture(scope="module")
def quantized(llama: Path) -> Path:
    return models.quantize(llama, llama.parent / "nf4", bnb_4bit_use_double_quant=True)


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """The quantized weights of a model that transformers loaded, as bitsandbytes dequantizes them."""
    found = {}
    for name, module in models.load(folder).named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            shape, state.shape = state.shape, torch.Size((1, math.prod(state.shape)))
            found[f"{name}.weight"] = bnb.dequantize_4bit(module.weight.data, state).reshape(shape)
    return found


def test_a_quantized_result_loads_and_holds_what_the_merge_made(llama: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter")
    report = merge_folder(llama, [(adapter, 1.0)], tmp_path / "out", dtype="nf4")
    merge_folder(llama, [(adapter, 1.0)], tmp_path / "wide", dtype="float32")
    result, wide = models.read(tmp_path / "out"), models.read(tmp_path / "wide")
    seen = loaded(tmp_path / "out")
    assert len(seen) == 14 and seen.keys() >= TOUCHED
    # What transformers sees is what our own reader makes of the file.
    merge_folder(tmp_path / "out", [(adapter, 0.0)], tmp_path / "again", dtype="bfloat16")
    again = models.read(tmp_path / "again")
    for name, value in seen.items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, again[name])
        packed, _ = bnb.quantize_4bit(wide[name], quant_type="nf4", blocksize=64)
        assert torch.equal(result[name], packed)
    sums = {tensor.name: tensor.sums for tensor in report.tensors}
    merge_folder(tmp_path / "out", [(adapter, 0.0)], tmp_path / "exact", dtype="float32")
    stored, base = models.read(tmp_path / "exact"), models.read(llama)
    for module in (models.Q, models.DOWN):
        name, delta = f"{module}.weight", models.change(module)
        realised = stored[name].double().numpy() - base[name].double().numpy()
        assert sums[name].kept == pytest.approx((realised * delta).sum() / (delta**2).sum(), rel=1e-4)
        cosine = (realised * delta).sum() / np.linalg.norm(realised) / np.linalg.norm(delta)
        assert sums[name].cosine == pytest.approx(cosine, rel=1e-4)


def test_the_bytes_of_a_group_leave_what_follows_aligned(llama: Path, tmp_path: Path) -> None:
    """Readers that map the file take numbers from where they lie."""
    merge_folder(llama, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out", dtype="nf4")
    path = tmp_path / "out" / "model.safetensors"
    data = path.read_bytes()
    header = parse_header(data, len(data))
    for tensor in header.tensors:
        assert tensor.file_start % DTYPE_BYTES[tensor.dtype] == 0, tensor.name
    states = [tensor for tensor in header.tensors if tensor.name.endswith("bitsandbytes__nf4")]
    assert len(states) == 14
    for tensor in states:
        state = json.loads(data[tensor.file_start : tensor.file_end])
        assert state["quant_type"] == "nf4" and state["blocksize"] == 64 and state["nested_blocksize"] == 256


def test_the_model_runs(llama: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter")
    merge_folder(llama, [(adapter, 1.0)], tmp_path / "out", dtype="nf4")
    merge_folder(tmp_path / "out", [(adapter, 0.0)], tmp_path / "wide")
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        ours, plain = (models.load(tmp_path / name)(tokens).logits.float() for name in ("out", "wide"))
    # Both multiply the same bf16 weights, in other orders; a logit is a sum of 64 products of about 0.02.
    assert torch.nn.functional.cosine_similarity(ours.flatten(), plain.flatten(), dim=0) > 0.99


def test_untouched_groups_go_over_byte_by_byte_and_loss_is_refused(quantized: Path, tmp_path: Path) -> None:
    """The weights lie on NF4's grid: a normal adapter does not move them off it (merging.md's 1 to 4 %)."""
    small = {name: (dtype, values * 0.2) for name, (dtype, values) in models.ADAPTER.items()}
    adapter = models.adapter(tmp_path / "adapter", small)
    with pytest.raises(RegistryError, match="survived the rounding") as caught:
        merge_folder(quantized, [(adapter, 1.0)], tmp_path / "refused", dtype="nf4")
    assert caught.value.facts["kept"] < 0.2 and not (tmp_path / "refused").exists()
    merge_folder(quantized, [(adapter, 1.0)], tmp_path / "out", dtype="nf4", min_kept=None)
    before, after = models.read(quantized), models.read(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if not any(name.startswith(weight) for weight in TOUCHED):
            assert torch.equal(after[name], value)
    assert (tmp_path / "out" / "config.json").read_bytes() == (quantized / "config.json").read_bytes()
    assert len(loaded(tmp_path / "out")) == 14


def test_stochastic_rounding_keeps_the_adapter(quantized: Path, tmp_path: Path) -> None:
    small = {name: (dtype, values * 0.2) for name, (dtype, values) in models.ADAPTER.items()}
    adapter = models.adapter(tmp_path / "adapter", small)
    kept = [
        merge_folder(
            quantized,
            [(adapter, 1.0)],
            tmp_path / f"{seed}",
            dtype="nf4",
            rounding="stochastic",
            seed=seed,
            min_kept=None,
        ).kept
        for seed in range(12)
    ]
    deviation = np.std(kept) / math.sqrt(len(kept))
    assert abs(np.mean(kept) - 1) < 5 * deviation and deviation < 0.2


@pytest.mark.parametrize("options", [{}, {"bnb_4bit_quant_storage": torch.bfloat16}])
def test_the_base_s_own_form_is_kept(llama: Path, tmp_path: Path, options: dict[str, torch.dtype]) -> None:
    base = models.quantize(llama, tmp_path / "base", **options)
    merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out", dtype="nf4", min_kept=None)
    before, after = models.read(base), models.read(tmp_path / "out")
    assert {name: (value.dtype, value.shape) for name, value in before.items() if "quant_state" not in name} == {
        name: (value.dtype, value.shape) for name, value in after.items() if "quant_state" not in name
    }
    for weight in TOUCHED:
        assert models.state_of(after, weight) == models.state_of(before, weight)
    assert len(loaded(tmp_path / "out")) == 14


def test_int8_becomes_nf4(llama: Path, tmp_path: Path) -> None:
    base = models.quantize(llama, tmp_path / "base", load_in_8bit=True)
    merge_folder(base, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out", dtype="nf4", min_kept=None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["load_in_4bit"] is True and config["llm_int8_skip_modules"] == ["lm_head"]
    assert len(loaded(tmp_path / "out")) == 14


def test_a_quantized_base_is_no_base_to_quantize(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="stored quantized") as caught:
        merge_folder(quantized, [(models.adapter(tmp_path / "adapter"), 1.0)], tmp_path / "out", onto="nf4")
    assert caught.value.code == "invalid-request"
