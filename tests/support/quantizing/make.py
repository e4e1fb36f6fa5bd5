"""Quantize a tiny Llama in every format that is read: `python make.py FOLDER`, where the libraries are installed.

For each case a folder with config.json, model.safetensors and, in `expected/model.safetensors`, each quantized weight as
the library itself dequantizes it.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS = 64, 160, 2
SIZES = {"q": HIDDEN, "k": HIDDEN, "v": HIDDEN, "o": HIDDEN}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
Tensors = dict[str, torch.Tensor]
Layer = tuple[Tensors, torch.Tensor]
"""The tensors that store a layer, by the last components of their names, and its dequantized weight."""


def full() -> tuple[dict[str, torch.Tensor], Tensors]:
    """Weights of the linear layers by path, and the other tensors."""
    torch.manual_seed(0)
    linear, others = {}, {}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        for name in SIZES:
            linear[f"{path}.self_attn.{name}_proj"] = 0.3 * torch.randn(HIDDEN, HIDDEN)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            linear[f"{path}.mlp.{name}_proj"] = 0.3 * torch.randn(shape)
        others[f"{path}.input_layernorm.weight"] = torch.ones(HIDDEN)
        others[f"{path}.post_attention_layernorm.weight"] = torch.ones(HIDDEN)
    others["model.embed_tokens.weight"] = torch.randn(96, HIDDEN)
    others["model.norm.weight"] = torch.ones(HIDDEN)
    others["lm_head.weight"] = torch.randn(96, HIDDEN)
    return linear, others


LINEAR, OTHERS = full()


def write(
    folder: Path, quantization: dict[str, Any], dtype: torch.dtype, make: Callable[[torch.Tensor], Layer]
) -> None:
    """Write one case. make: quantizes a weight."""
    tensors = {name: value.to(dtype) for name, value in OTHERS.items()}
    expected = {}
    for path, weight in LINEAR.items():
        stored, wanted = make(weight)
        tensors |= {f"{path}.{leaf}": value.contiguous() for leaf, value in stored.items()}
        expected[f"{path}.weight"] = wanted.to(dtype).contiguous()
    if quantization.get("kv_cache_scheme"):
        for layer in range(LAYERS):
            tensors |= {f"model.layers.{layer}.self_attn.{kind}_scale": torch.ones(1) for kind in "kv"}
    (folder / "expected").mkdir(parents=True)
    config = {**CONFIG, "dtype": str(dtype).removeprefix("torch."), "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_file(expected, folder / "expected" / "model.safetensors", {"format": "pt"})


def affine(weight: torch.Tensor, bits: int, group: int, *, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros (out, groups) by the extremes of each group, with codes from 0."""
    groups = weight.reshape(len(weight), -1, group)
    low, high, most = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0), 2**bits - 1
    if symmetric:
        scale = torch.maximum(-low, high) * 2 / most
        return scale, torch.full_like(scale, (most + 1) / 2)
    scale = (high - low) / most
    return scale, torch.round(-low / scale).clamp(1, most)


def linear(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    layer.weight.data = weight.to(dtype)
    return layer


def auto_gptq(bits: int, group: int, *, symmetric: bool, order: bool = False) -> Callable[[torch.Tensor], Layer]:
    """AutoGPTQ. Its layers multiply by what they dequantize: a unit matrix gives the weight."""
    bare("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    module = importlib.import_module(f"auto_gptq.nn_modules.qlinear.qlinear_cuda{'' if order else '_old'}")

    def make(weight: torch.Tensor) -> Layer:
        out, inputs = weight.shape
        size = inputs if group == -1 else group
        places = torch.randperm(inputs, generator=torch.Generator().manual_seed(1)) if order else torch.arange(inputs)
        index = torch.empty(inputs, dtype=torch.int32)
        index[places] = (torch.arange(inputs) // size).to(torch.int32)
        scale, zero = affine(weight[:, places], bits, size, symmetric=symmetric)
        layer = module.QuantLinear(bits, group, inputs, out, bias=False, weight_dtype=torch.float16)
        layer.pack(linear(weight.half(), torch.float16), scale.half(), zero, index)
        stored = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
        return ({**stored, "g_idx": index} if order else stored), layer(torch.eye(inputs).half()).T

    return make


def gptqmodel(bits: int, group: int, form: str) -> Callable[[torch.Tensor], Layer]:
    """GPTQModel. It computes with version 2 of the format and converts to the first when it saves."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    def make(weight: torch.Tensor) -> Layer:
        out, inputs = weight.shape
        scale, zero = affine(weight, bits, group, symmetric=False)
        zero[::7] = 0  # as of a row without negative weights: the first version borrows from the next zero
        index = (torch.arange(inputs) // group).to(torch.int32)
        layer = TorchLinear(bits, group, False, False, inputs, out, format=FORMAT.GPTQ_V2)
        layer.pack_original(linear(weight.half(), torch.float16), scale, zero, index)
        layer.post_init()
        wanted = layer.dequantize_weight().T.clone()
        if form == "gptq":
            convert_gptq_v2_to_v1_format_module(layer, SimpleConfig(bits))
        return {name: getattr(layer, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}, wanted

    return make


class SimpleConfig(types.SimpleNamespace):
    """What the converter of GPTQModel reads of its config."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits=bits, pack_dtype=torch.int32, planar=False)


def bare(*names: str) -> None:
    """Import packages without their `__init__`, which imports models that transformers no longer has."""
    for name in names:
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(Path(base) / name.replace(".", "/")) for base in sys.path]
            sys.modules[name] = package


def autoawq(group: int) -> Callable[[torch.Tensor], Layer]:
    """AutoAWQ."""
    bare("awq", "awq.modules", "awq.modules.linear", "awq.utils")
    gemm = importlib.import_module("awq.modules.linear.gemm")
    packing = importlib.import_module("awq.utils.packing_utils")

    def make(weight: torch.Tensor) -> Layer:
        scale, zero = affine(weight, 4, group, symmetric=False)
        layer = gemm.WQLinear_GEMM.from_linear(
            linear(weight.half(), torch.float16),
            4,
            group,
            scales=scale.T.half().contiguous(),
            zeros=zero.T.contiguous(),
        )
        wanted = packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, group).T
        return {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}, wanted

    return make


def autoawq_gemv(group: int) -> Callable[[torch.Tensor], Layer]:
    """AutoAWQ's layout GEMV. Only a GPU reads it there: here by the order in which it packs."""
    bare("awq", "awq.modules", "awq.modules.linear", "awq.utils")
    gemv = importlib.import_module("awq.modules.linear.gemv")

    def make(weight: torch.Tensor) -> Layer:
        scale, zero = (part.half() for part in affine(weight, 4, group, symmetric=False))
        layer = gemv.WQLinear_GEMV.from_linear(linear(weight.half(), torch.float16), 4, group, scales=scale, zeros=zero)
        shifts, groups = torch.arange(0, 32, 4), weight.shape[1] // group
        codes, zeros = (
            ((words[:, :, None] >> shifts) & 15).reshape(len(words), -1) for words in (layer.qweight, layer.qzeros)
        )
        spread = [part[:, :groups].repeat_interleave(group, 1) for part in (zeros, layer.scales)]
        stored = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
        return stored, (codes - spread[0]) * spread[1]

    return make


def compressed(form: str, weights: dict[str, Any], dtype: torch.dtype) -> Callable[[torch.Tensor], Layer]:
    """compressed-tensors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    kind = BaseCompressor.get_value_from_registry(form)
    args = scheme.weights

    def make(weight: torch.Tensor) -> Layer:
        weight = weight.to(dtype)
        rows, columns = weight.shape
        high, wide = {
            "tensor": (rows, columns),
            "channel": (1, columns),
            "group": (1, args.group_size),
            "tensor_group": (1, args.group_size),
            "block": args.block_structure,
        }[args.strategy]
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
        cells = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
        low, top = cells.amin((1, 3)), cells.amax((1, 3))
        given: Tensors = {"weight": weight}
        more = {}
        if args.strategy == "tensor_group":
            given["weight_global_scale"] = more["global_scale"] = generate_gparam(weight.min(), weight.max())
        scale, zero = calculate_qparams(low, top, args, **more)
        if args.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        given |= {"weight_scale": scale, "weight_zero_point": zero}
        stored = kind.compress(dict(given), scheme)
        return stored, kind.decompress(dict(stored), scheme)["weight"]

    return make


def fp8(block: tuple[int, int] | None, kind: str = "float32") -> Callable[[torch.Tensor], Layer]:
    """The FP8 of transformers and DeepSeek."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    config = types.SimpleNamespace(weight_block_size=block, scale_fmt="ue8m0" if kind == "ue8m0" else "float")
    quantizer = types.SimpleNamespace(quantization_config=config)

    def make(weight: torch.Tensor) -> Layer:
        made = Fp8Quantize(quantizer).convert({"x.weight": weight})
        codes, scales = made["x.weight"], made["x.weight_scale_inv"]
        if block is None:
            scales = scales.reshape(())
        dequantized = Fp8Dequantize(quantizer)._dequantize_one(codes, scales, output_dtype=torch.bfloat16)
        return {"weight": codes, "weight_scale_inv": scales}, dequantized

    return make


def gptq_config(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **more}


def compressed_config(form: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **more,
    }


def main(folder: Path) -> None:
    half, bf16 = torch.float16, torch.bfloat16
    for bits, group, symmetric in ((2, 32, False), (3, -1, True), (4, 32, False), (8, -1, True)):
        made = auto_gptq(bits, group, symmetric=symmetric)
        write(folder / f"gptq-{bits}", gptq_config(bits, group, sym=symmetric), half, made)
    config = gptq_config(4, 32, desc_act=True, checkpoint_format="gptq")
    write(folder / "gptq-4-desc_act", config, half, auto_gptq(4, 32, symmetric=False, order=True))
    for bits, form in ((4, "gptq"), (4, "gptq_v2"), (8, "gptq"), (3, "gptq_v2")):
        config = gptq_config(bits, 32, checkpoint_format=form, meta={"quantizer": ["gptqmodel:7.7.0"]})
        write(folder / f"gptqmodel-{bits}-{form}", config, half, gptqmodel(bits, 32, form))
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    write(folder / "awq", config, half, autoawq(32))
    write(folder / "awq-gemv", {**config, "version": "gemv"}, half, autoawq_gemv(32))

    four = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    eight = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    floats = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "pack-4-group": ("pack-quantized", four),
        "pack-4-group-asymmetric": ("pack-quantized", {**four, "symmetric": False}),
        "pack-4-channel": ("pack-quantized", {**eight, "num_bits": 4}),
        "pack-8-channel-asymmetric": ("pack-quantized", {**eight, "symmetric": False}),
        "pack-3-group": ("pack-quantized", {**four, "num_bits": 3}),
        "pack-5-group-asymmetric": ("pack-quantized", {**four, "num_bits": 5, "symmetric": False}),
        "int-8-channel": ("int-quantized", eight),
        "int-8-channel-asymmetric": ("int-quantized", {**eight, "symmetric": False}),
        "int-8-tensor": ("int-quantized", {**eight, "strategy": "tensor"}),
        "naive-4-group": ("naive-quantized", four),
        "float-8-channel": ("float-quantized", floats),
        "float-8-tensor": ("float-quantized", {**floats, "strategy": "tensor"}),
        "float-8-block": ("float-quantized", {**floats, "strategy": "block", "block_structure": [128, 32]}),
        "nvfp4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16},
        ),
        "mxfp4": ("mxfp4-pack-quantized", {**four, "type": "float", "scale_dtype": "torch.uint8"}),
        "mxfp8": ("mxfp8-quantized", {**floats, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    }
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    for name, (form, weights) in cases.items():
        more = {"kv_cache_scheme": cache} if name == "float-8-tensor" else {}
        write(folder / name, compressed_config(form, weights, **more), bf16, compressed(form, weights, bf16))

    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    write(folder / "fp8-block", {**config, "weight_block_size": [32, 32]}, bf16, fp8((32, 32)))
    write(folder / "fp8-tensor", {**config, "weight_block_size": None}, bf16, fp8(None))
    config |= {"weight_block_size": [32, 32], "scale_fmt": "ue8m0"}
    write(folder / "fp8-ue8m0", config, bf16, fp8((32, 32), "ue8m0"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
