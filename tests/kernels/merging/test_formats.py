"""Merging into bases of GPTQ, AWQ, FP8 and compressed-tensors: what is read is what their libraries read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.sources import FolderSource, RangeSource
from lora_kernels.merging import merge_folder, plan_folder, stream_shard
from tests.kernels.checkpoints import pair, write_adapter
from tests.support.quantizing import quantized_checkpoints

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
ADAPTER = {
    **pair(Q, out=64, in_=64, r=4, seed=1, size=0.05),
    **pair(DOWN, out=64, in_=160, r=4, seed=2, size=0.05),
}
CASES = (
    *("gptq-2", "gptq-3", "gptq-4", "gptq-8", "gptq-4-desc_act"),
    *("gptqmodel-4-gptq", "gptqmodel-4-gptq_v2", "gptqmodel-8-gptq", "gptqmodel-3-gptq_v2", "awq", "awq-gemv"),
    *("pack-4-group", "pack-4-group-asymmetric", "pack-4-channel", "pack-8-channel-asymmetric"),
    *("pack-3-group", "pack-5-group-asymmetric", "int-8-channel", "int-8-channel-asymmetric", "int-8-tensor"),
    *("naive-4-group", "float-8-channel", "float-8-tensor", "float-8-block", "nvfp4", "mxfp4", "mxfp8"),
    *("fp8-block", "fp8-tensor", "fp8-ue8m0"),
)
Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


@pytest.fixture(scope="session")
def bases() -> Path:
    return quantized_checkpoints()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("formats") / "adapter", ADAPTER)


def merged(base: Path, adapter: Path, out: Path, weight: float = 1.0, **options: Any) -> dict[str, torch.Tensor]:
    merge_folder(base, [(adapter, weight)], out, **options)
    return load_file(out / "model.safetensors")


def change(module: str) -> np.ndarray:
    """dW of the adapter, of rank 4 and alpha 8, in float64."""
    a, b = (ADAPTER[f"{module}.lora_{half}.weight"][1].astype(np.float32).astype(np.float64) for half in "AB")
    return 2 * b @ a


def changed(base: Path, folder: Path, change: Change) -> Path:
    """A copy of a base with other tensors or another quantization_config."""
    folder.mkdir()
    tensors, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_dequantized_weights_are_those_of_the_library(case: str, bases: Path, adapter: Path, tmp_path: Path) -> None:
    """With a weight of zero nothing is added: every bit of every layer must be what the library gives."""
    result = merged(bases / case, adapter, tmp_path / "out", 0.0)
    expected = load_file(bases / case / "expected" / "model.safetensors")
    assert len(expected) == 14
    for name, weight in expected.items():
        assert result[name].dtype == weight.dtype and torch.equal(result[name], weight), name
    others = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    others |= {f"model.layers.{layer}.{norm}.weight" for layer in (0, 1) for norm in NORMS}
    assert set(result) == {*expected, *others}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((bases / case / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == original["dtype"]


NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.mark.parametrize("case", ["gptq-4-desc_act", "awq", "pack-4-group-asymmetric", "fp8-block", "nvfp4"])
def test_merged_weights_are_float32_sums(case: str, bases: Path, adapter: Path, tmp_path: Path) -> None:
    before = merged(bases / case, adapter, tmp_path / "before", 0.0, dtype="float32")
    report = merge_folder(bases / case, [(adapter, 1.0)], tmp_path / "out", dtype="float32")
    after = load_file(tmp_path / "out" / "model.safetensors")
    for module in (Q, DOWN):
        weight, delta = before[f"{module}.weight"].double().numpy(), change(module)
        a, b = (np.abs(ADAPTER[f"{module}.lora_{half}.weight"][1]) for half in "AB")
        bound = 2.0**-24 * (8 * 2 * b @ a + 2 * np.abs(weight + delta))
        assert (np.abs(after[f"{module}.weight"].double().numpy() - (weight + delta)) <= bound).all()
    assert report.kept == pytest.approx(1, abs=1e-5)
    assert report.dequantized is not None and report.dequantized.startswith("14 weights of ")
    assert report.dequantized.endswith(" as float32")


@pytest.mark.parametrize("dora", [False, True])
def test_the_merged_model_is_that_of_transformers_and_peft(dora: bool, bases: Path, tmp_path: Path) -> None:
    """transformers dequantizes FP8 itself where there is no GPU, into bfloat16: with scales that are powers of two this
    rounds nothing. The adapter is made and merged by PEFT."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(bases / "fp8-ue8m0", dtype=torch.bfloat16)
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
    torch.manual_seed(0)
    model = peft.get_peft_model(base.float(), config)
    model.save_pretrained(tmp_path / "adapter")
    merge_folder(bases / "fp8-ue8m0", [(tmp_path / "adapter", 1.0)], tmp_path / "out", dtype="float32")
    result = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        wanted, without = model.eval()(tokens).logits, model.unload()(tokens).logits
        torch.testing.assert_close(result(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - without).abs().max() > 0.1


@pytest.mark.parametrize("case", ["gptq-4", "gptq-3", "awq", "pack-4-group", "float-8-block"])
def test_a_stream_from_a_store_has_the_bytes_of_a_folder(
    case: str, bases: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of a read: one column of words at a time, or all of them."""
    merge_folder(bases / case, [(adapter, 1.0)], tmp_path / "out")
    plan = plan_folder(bases / case, [(adapter, 1.0)])
    sizes = {"model.safetensors": (bases / case / "model.safetensors").stat().st_size}
    adapters = {"adapter_model.safetensors": (adapter / "adapter_model.safetensors").stat().st_size}
    for held in (1, 3000, 1 << 20):
        monkeypatch.setattr(RangeSource, "scattered", held)
        with FolderSource(bases / case) as base, FolderSource(adapter) as tuned:
            chunks = stream_shard(
                plan,
                "model.safetensors",
                base=RangeSource(base.read, sizes=sizes, window=4096),
                adapters=[RangeSource(tuned.read, sizes=adapters)],
            )
            written = b"".join(bytes(chunk) for chunk in chunks)
        assert written == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_the_result_can_be_quantized_to_nf4(bases: Path, adapter: Path, tmp_path: Path) -> None:
    result = merged(bases / "gptq-4", adapter, tmp_path / "out", dtype="nf4", min_kept=None)
    assert f"{Q}.weight.absmax" in result and "lm_head.weight.absmax" not in result
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"


def test_files_that_describe_the_quantization_are_left_out(bases: Path, adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(bases / "gptq-4", tmp_path / "base"))
    for name in ("quantize_config.json", "quant_config.json", "generation_config.json"):
        (base / name).write_text("{}")
    merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors")
    }


def _drop(name: str) -> Change:
    return lambda tensors, _config: tensors.__delitem__(f"{Q}.{name}")


def _put(name: str, value: torch.Tensor) -> Change:
    return lambda tensors, _config: tensors.__setitem__(name if "." in name else f"{Q}.{name}", value)


def _say(**more: Any) -> Change:
    return lambda _tensors, config: config.update(more)


REFUSED: dict[str, tuple[str, Change, str, str]] = {
    "marlin": ("gptq-4", _say(checkpoint_format="marlin"), "unsupported", "layout 'marlin'"),
    "marlin by flag": ("gptq-4", _say(is_marlin_format=True), "unsupported", "layout 'marlin'"),
    "planar": ("gptq-4", _say(checkpoint_format="gptq_p"), "unsupported", "layout 'gptq_p'"),
    "packed in bytes": ("gptq-4", _say(pack_dtype="int8"), "unsupported", "packed in int8"),
    "no zeros": ("gptq-4", _drop("qzeros"), "rejected", r"has no \S+\.qzeros"),
    "no scales": ("gptq-4", _drop("scales"), "rejected", r"has no \S+\.scales"),
    "short zeros": (
        "gptq-4",
        _put("qzeros", torch.zeros(2, 7, dtype=torch.int32)),
        "rejected",
        "do not agree|zeros of",
    ),
    "no order": ("gptq-4-desc_act", _drop("g_idx"), "rejected", "although config.json says desc_act"),
    "short order": ("gptq-4-desc_act", _put("g_idx", torch.zeros(63, dtype=torch.int32)), "rejected", "g_idx"),
    "wild order": ("gptq-4-desc_act", _put("g_idx", torch.full((64,), 9, dtype=torch.int32)), "rejected", "beyond"),
    "other groups": ("gptq-4", _put("scales", torch.ones(3, 64).half()), "rejected", "do not agree"),
    "scales of integers": (
        "gptq-4",
        _put("scales", torch.ones(2, 64, dtype=torch.int8)),
        "rejected",
        "expected a matrix",
    ),
    "gemv fast": ("awq", _say(version="gemv_fast"), "unsupported", "layout 'gemv_fast' of AWQ"),
    "gemm as gemv": ("awq", _say(version="gemv"), "rejected", "do not agree at 4 bits and groups of 32"),
    "groups of gemv": ("awq-gemv", _say(group_size=7), "rejected", "groups of 7"),
    "awq of 3 bits": ("awq", _say(bits=3), "unsupported", "AWQ with 3 bits"),
    "scaled activation": (
        "awq",
        _put("model.layers.0.mlp.act.scales", torch.ones(160).half()),
        "unsupported",
        r"act\.scales scales an activation",
    ),
    "narrow awq": ("awq", _put("qweight", torch.zeros(64, 7, dtype=torch.int32)), "rejected", "do not agree"),
    "sparse": ("pack-4-group", _say(sparsity_config={"format": "sparse-24-bitmask"}), "unsupported", "also sparse"),
    "marlin-24": ("pack-4-group", _say(format="marlin-24"), "unsupported", "'marlin-24' of compressed-tensors"),
    "mxfp6": ("mxfp4", _say(format="mxfp6-pack-quantized"), "unsupported", "'mxfp6-pack-quantized'"),
    "rotated": ("pack-4-group", _say(transform_config={"config_groups": {"u": {}}}), "unsupported", "rotated"),
    "no shape": ("pack-4-group", _drop("weight_shape"), "rejected", r"has no \S+\.weight_shape"),
    "other shape": ("pack-4-group", _put("weight_shape", torch.tensor([64, 96])), "rejected", "8 words for 96 codes"),
    "endless shape": ("pack-4-group", _put("weight_shape", torch.tensor([64, 1 << 60])), "rejected", "weight_shape"),
    "no scale of a pack": ("pack-4-group", _drop("weight_scale"), "rejected", r"has no \S+\.weight_scale"),
    "odd scale": ("pack-4-group", _put("weight_scale", torch.ones(64, 3)), "rejected", "64 x 3 scales"),
    "odd zeros": (
        "pack-4-group-asymmetric",
        _put("weight_zero_point", torch.zeros(9, 2, dtype=torch.int32)),
        "rejected",
        "expected 8 x 2",
    ),
    "no scale of FP8": ("fp8-block", _drop("weight_scale_inv"), "rejected", "has no scales"),
    "odd scale of FP8": ("fp8-block", _put("weight_scale_inv", torch.ones(3, 2)), "rejected", "3 x 2 scales"),
    "no global scale": ("nvfp4", _drop("weight_global_scale"), "rejected", "expected FP8 with a global scale"),
    "rounded in use": (
        "int-8-channel",
        _put("weight", torch.zeros(64, 64, dtype=torch.bfloat16)),
        "rejected",
        "rounded while the model runs",
    ),
    "unknown part": ("fp8-block", _put("pre_quant_scale", torch.ones(64)), "rejected", "pre_quant_scale"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_by_name(kind: str, bases: Path, adapter: Path, tmp_path: Path) -> None:
    case, change, code, sentence = REFUSED[kind]
    base = changed(bases / case, tmp_path / "base", change)
    with pytest.raises(RegistryError, match=sentence) as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == code and caught.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_of_a_quantized_layer_equals_its_dequantized_values(trained: bool, bases: Path, tmp_path: Path) -> None:
    """An output layer that is quantized, with the copy of it that PEFT saves beside an adapter."""
    tensors, config = load_file(bases / "pack-4-group" / "model.safetensors"), bases / "pack-4-group" / "config.json"
    for leaf in ("weight_packed", "weight_scale", "weight_shape"):
        tensors[f"lm_head.{leaf}"] = tensors[f"{Q}.{leaf}"].clone()
    del tensors["lm_head.weight"]
    base = tmp_path / "base"
    base.mkdir()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    shutil.copy(config, base)
    copy = load_file(bases / "pack-4-group" / "expected" / "model.safetensors")[f"{Q}.weight"].view(torch.int16).numpy()
    copy = copy.astype(np.uint16) + np.uint16(trained)
    adapter = write_adapter(tmp_path / "adapter", {**ADAPTER, "lm_head.weight": ("BF16", copy)})
    if trained:
        with pytest.raises(RegistryError, match="values differ"):
            merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
        return
    assert "lm_head.weight" in merged(base, adapter, tmp_path / "out")


def test_a_base_of_another_method_says_so(bases: Path, adapter: Path, tmp_path: Path) -> None:
    """Its plain weights can still be merged into: the result stays quantized."""

    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        config["quant_method"] = "hqq"
        for name in [name for name in tensors if name.startswith(Q)]:
            tensors[name.replace("qweight", "W_q")] = tensors.pop(name)

    base = changed(bases / "gptq-4", tmp_path / "base", change)
    with pytest.raises(RegistryError, match="quantized by hqq, which is not read here") as caught:
        merge_folder(base, [(adapter, 1.0)], tmp_path / "out")
    assert caught.value.code == "unsupported" and "gptq" in caught.value.hint
    head = {key.replace(Q, "lm_head"): value for key, value in pair(Q, out=96, in_=64, r=4, seed=1).items()}
    other = write_adapter(tmp_path / "head", head)
    result = merged(base, other, tmp_path / "out")
    assert f"{DOWN}.qweight" in result
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())
