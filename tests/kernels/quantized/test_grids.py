"""Codes with grids of scales, against the formula of each format: what no library writes here, and blocks of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora_contract.errors import RegistryError
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.checkpoint.sources import FolderSource
from lora_kernels.numeric.blocks import Block
from lora_kernels.quantized.bits import float8
from lora_kernels.quantized.grids import GridWeights
from lora_kernels.quantized.layout import Quantized
from lora_kernels.quantized.reading import read_quantized

M = "model.layers.0.self_attn.k_proj"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def base(folder: Path, tensors: dict[str, torch.Tensor], quantization: dict[str, Any] | None, **config: Any) -> Path:
    folder.mkdir()
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", **config}
    if quantization is not None:
        text["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(text))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def found(folder: Path) -> dict[str, Quantized]:
    fingerprint, _ = read_base(folder)
    with FolderSource(folder) as source:
        return read_quantized(fingerprint, source.read)


def values(folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All quantized weights. step: elements of a block; None for all at once."""
    read = {}
    with FolderSource(folder) as source:
        for name, known in found(folder).items():
            count = int(np.prod(known.shape))
            weights, flat = GridWeights.open(known, source)(), np.empty(count, np.float32)
            for first in range(0, count, step or count):
                stop = min(first + (step or count), count)
                weights.read(Block(0, 1, first, stop, count), flat[None, first:stop])
            read[name] = flat.reshape(known.shape)
    return read


def random(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e4m3fn)


def equal(read: np.ndarray, wanted: torch.Tensor) -> bool:
    return read.tobytes() == wanted.float().contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2"), ("E8M0", "float8_e8m0fnu")]
)
def test_bytes_are_the_floats_of_torch(kind: str, dtype: str) -> None:
    wanted = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(float8(kind), wanted)
    assert (np.signbit(float8(kind)) == np.signbit(wanted))[~np.isnan(wanted)].all()


@pytest.mark.parametrize("step", [None, 7, 64, 100])
def test_rows_and_blocks_of_any_size(step: int | None, tmp_path: Path) -> None:
    """DeepSeek's blocks, the last of them short, also where a read starts and ends within a row."""
    codes, scales = fp8(40, 48), torch.rand(2, 3)
    folder = base(
        tmp_path / "base",
        {f"{M}.weight": codes, f"{M}.weight_scale_inv": scales, f"{M}.activation_scale": torch.ones(1)},
        {"quant_method": "fp8", "weight_block_size": [32, 20]},
    )
    spread = scales.repeat_interleave(32, 0)[:40].repeat_interleave(20, 1)[:, :48]
    assert equal(values(folder, step)[f"{M}.weight"], codes.float() * spread)
    assert found(folder)[f"{M}.weight"].others == (f"{M}.activation_scale",)


@pytest.mark.parametrize(
    ("name", "leaf", "shape", "scale"),
    [
        ("weight", "weight_scale", (8, 16), (8, 1)),  # fbgemm
        ("weight", "weight_scale", (8, 16), (8,)),
        ("weight", "weight_scale", (8, 16), ()),
        ("weight", "scale", (8, 16), (2, 4)),
        ("gate_up_proj", "gate_up_proj_scale", (3, 8, 16), (3, 1, 16)),  # Llama 4 of fbgemm, (in, out)
        ("gate_up_proj", "gate_up_proj_scale_inv", (3, 8, 16), (3, 2, 4)),
        ("gate_up_proj", "gate_up_proj_scale_inv", (3, 8, 16), (3, 1, 1)),
        ("gate_up_proj", "gate_up_proj_scale_inv", (3, 8, 16), (3,)),
    ],
)
def test_scales_of_every_granularity(
    name: str, leaf: str, shape: tuple[int, ...], scale: tuple[int, ...], tmp_path: Path
) -> None:
    codes, scales = fp8(*shape), torch.rand(scale) + 0.5
    folder = base(
        tmp_path / "base",
        {f"{M}.{name}": codes, f"{M}.{leaf}": scales, f"{M}.{name}_activation_scale": torch.ones(1)},
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0} if name == "weight" else {"quant_method": "fp8"},
    )
    while len(scales.shape) not in (0, len(shape)):
        scales = scales[..., None]
    spread = scales
    for dimension in range(len(scales.shape)):
        spread = spread.repeat_interleave(shape[dimension] // scales.shape[dimension], dimension)
    assert equal(values(folder, 24)[f"{M}.{name}"], codes.float() * spread)


def test_nvfp4_of_modelopt(tmp_path: Path) -> None:
    codes, scales, factor = random(8, 16).byte(), fp8(8, 2).abs(), torch.tensor(0.37)
    tensors = {f"{M}.weight": codes, f"{M}.weight_scale": scales, f"{M}.weight_scale_2": factor}
    tensors |= {f"{M}.input_scale": torch.ones(()), f"{M}.k_scale": torch.ones(())}
    folder = base(tmp_path / "base", tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    numbers = torch.stack((E2M1[codes.long() & 15], E2M1[codes.long() >> 4]), 2).reshape(8, 32)
    spread = (scales.float() * factor).repeat_interleave(16, 1)
    assert equal(values(folder)[f"{M}.weight"], numbers * spread)
    assert found(folder)[f"{M}.weight"].others == (f"{M}.input_scale", f"{M}.k_scale")


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """As many whole codes as fit in a word, as compressed-tensors packed before it packed densely."""
    a_word = 32 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % a_word)).reshape(len(codes), -1, a_word)
    return sum(padded[:, :, place].long() << (bits * place) for place in range(a_word)).to(torch.int32)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_codes_in_words_and_an_order_of_columns(bits: int, tmp_path: Path) -> None:
    """Formats of older versions of compressed-tensors: zeros as int8, columns in the order of their activations."""
    codes, scales = random(8, 96, high=1 << bits), torch.rand(8, 3, dtype=torch.bfloat16)
    zeros, order = random(8, 3, low=-2, high=2, seed=1).to(torch.int8), random(96, high=3, seed=2).to(torch.int32)
    tensors = {
        f"{M}.weight_packed": packed(codes, bits),
        f"{M}.weight_scale": scales,
        f"{M}.weight_zero_point": zeros,
        f"{M}.weight_g_idx": order,
        f"{M}.weight_shape": torch.tensor([8, 96]),
    }
    weights = {"num_bits": bits, "type": "int", "group_size": 32, "strategy": "group", "actorder": "group"}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"a": {"weights": weights}},
    }
    folder = base(tmp_path / "base", tensors, config)
    signed = codes - (1 << (bits - 1)) - zeros[:, order.long()]
    assert equal(values(folder, 50)[f"{M}.weight"], signed * scales.float()[:, order.long()])
    tensors[f"{M}.weight_g_idx"] = torch.full((96,), -1, dtype=torch.int32)
    plain = base(tmp_path / "plain", tensors, config)
    signed = codes - (1 << (bits - 1)) - zeros.repeat_interleave(32, 1)
    assert equal(values(plain)[f"{M}.weight"], signed * scales.float().repeat_interleave(32, 1))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_layers_that_are_stored_as_inputs_by_outputs(bits: int, ordered: bool, tmp_path: Path) -> None:
    """GPT-2: GPTQ packs the transpose of its weights, which is the weight of a plain layer."""
    inputs, out, path = 96, 32, "transformer.h.0.attn.c_attn"
    codes, zeros = random(inputs, out, high=1 << bits), random(3, out, low=1, high=1 << bits, seed=1)
    scales, group = torch.rand(3, out).half(), torch.arange(inputs) // 32
    if ordered:
        group = group[torch.randperm(inputs, generator=torch.Generator().manual_seed(2))]
    tensors = {
        f"{path}.qweight": stream(codes.T, bits).T,
        f"{path}.qzeros": stream((zeros - 1) % (1 << bits), bits),
        f"{path}.scales": scales,
        f"{path}.g_idx": group.to(torch.int32),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": ordered}
    folder = base(tmp_path / "base", tensors, config, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    wanted = (codes - zeros[group]) * scales.float()[group]
    for step in (None, 7, 70, 1100):
        assert equal(values(folder, step)[f"{path}.weight"], wanted)


def stream(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of codes as streams of bits in words of 32."""
    places = (codes.long()[:, :, None] >> torch.arange(bits)) & 1
    words = places.reshape(len(codes), -1, 32) << torch.arange(32)
    return words.sum(2).to(torch.int32)


def test_modules_of_one_base_may_have_other_bits(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: the config's bits and groups are those of most modules."""
    tensors, wanted = {}, {}
    for path, bits, groups in ((M, 4, 2), (M.replace("k_proj", "v_proj"), 8, 4)):
        codes, zeros = random(64, 32, high=1 << bits), random(groups, 32, low=1, high=1 << bits, seed=1)
        scales, group = torch.rand(groups, 32).half(), torch.arange(64) // (64 // groups)
        parts = {"qweight": packed(codes.T, bits).T, "qzeros": packed(zeros - 1, bits), "scales": scales}
        tensors |= {f"{path}.{leaf}": value for leaf, value in parts.items()}
        wanted[f"{path}.weight"] = ((codes - zeros[group]) * scales.float()[group]).T
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "dynamic": {".*v_proj": {"bits": 8, "group_size": 16}},
    }
    read = values(base(tmp_path / "base", tensors, config))
    assert set(read) == set(wanted) and all(equal(read[name], wanted[name]) for name in wanted)


def test_groups_of_gptq_of_which_the_last_is_short(tmp_path: Path) -> None:
    codes, zeros = random(64, 8, high=16), random(3, 8, low=1, high=16, seed=1)
    scales = torch.rand(3, 8).half()
    words = packed(codes.T, 4).T
    tensors = {f"{M}.qweight": words, f"{M}.qzeros": packed(zeros - 1, 4), f"{M}.scales": scales}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 24, "desc_act": False}
    folder = base(tmp_path / "base", tensors, config)
    group = torch.arange(64) // 24
    assert equal(values(folder, 30)[f"{M}.weight"], ((codes - zeros[group]) * scales.float()[group]).T)


@pytest.mark.parametrize(
    ("config", "more", "wanted"),
    [
        ({"dtype": "float16"}, {}, "F16"),
        ({"dtype": None, "torch_dtype": "float32"}, {}, "F32"),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, {}, "F16"),
        ({"dtype": None}, {"lm_head.weight": torch.ones(4, 4).half()}, "F16"),
        ({"dtype": None}, {}, "BF16"),
    ],
)
def test_dtype_of_a_dequantized_weight(
    config: dict[str, Any], more: dict[str, torch.Tensor], wanted: str, tmp_path: Path
) -> None:
    tensors = {f"{M}.weight": fp8(8, 16), f"{M}.weight_scale": torch.ones(1), **more}
    folder = base(tmp_path / "base", tensors, {"quant_method": "fp8"}, **config)
    assert found(folder)[f"{M}.weight"].dtype == wanted


def test_a_config_of_a_part_and_an_older_key(tmp_path: Path) -> None:
    tensors = {f"{M}.weight": fp8(8, 16), f"{M}.weight_scale": torch.ones(1)}
    quantization = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    nested = base(tmp_path / "nested", tensors, None, text_config={"quantization_config": quantization})
    older = base(tmp_path / "older", tensors, None, compression_config=quantization)
    assert set(found(nested)) == set(found(older)) == {f"{M}.weight"}


def test_codes_without_a_config_are_refused(tmp_path: Path) -> None:
    tensors = {f"{M}.qweight": torch.zeros(8, 64, dtype=torch.int32)}
    folder = base(tmp_path / "base", tensors, None)
    with pytest.raises(RegistryError, match=r"config\.json does not say how") as caught:
        found(folder)
    assert "quantize_config.json" in caught.value.hint


def test_methods_that_are_not_read_find_nothing(tmp_path: Path) -> None:
    tensors = {f"{M}.W_q": torch.zeros(8, 64, dtype=torch.uint8), "lm_head.weight": torch.ones(4, 4)}
    assert found(base(tmp_path / "base", tensors, {"quant_method": "hqq"})) == {}
