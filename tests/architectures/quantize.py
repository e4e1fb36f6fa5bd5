"""Quantize the linear layers of a checkpoint in one of the formats that are read, by their formulas in torch.

Beside the quantized checkpoint, the same weights as plain numbers: a merge must give the same of both.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_kernels.checkpoint.folders import read_base
from lora_kernels.merging import merge_folder

Made = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors that store a weight, by the last components of their names, and the weight that they stand for."""


def packed(codes: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Codes of 4 bits, eight a word along the rows. order: the place in eight of each 4 bits, from the lowest."""
    eight = codes.long().reshape(len(codes), -1, 8)
    return sum(eight[:, :, place] << (4 * number) for number, place in enumerate(order)).to(torch.int32)


def _affine(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes of 4 bits, scales and zeros by row, and the weight that they stand for."""
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=1e-6)
    scale = (high - low) / 15
    zero = torch.round(-low / scale).clamp(1, 15)
    codes = (torch.round(weight / scale) + zero).clamp(0, 15)
    return codes, scale, zero, (codes - zero) * scale


def _gptq(weight: torch.Tensor) -> Made:
    codes, scale, zero, plain = _affine(weight)
    stored = {"qweight": packed(codes).T, "qzeros": packed(zero.T - 1), "scales": scale.T}
    return stored, plain


def _awq(weight: torch.Tensor) -> Made:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    codes, scale, zero, plain = _affine(weight)
    return {"qweight": packed(codes.T, order), "qzeros": packed(zero.T, order), "scales": scale.T}, plain


def _pack(weight: torch.Tensor) -> Made:
    codes, scale, zero, plain = _affine(weight)
    shape = torch.tensor(weight.shape)
    zeros = (zero - 8).to(torch.int8)
    return {
        "weight_packed": packed(codes),
        "weight_scale": scale,
        "weight_zero_point": zeros,
        "weight_shape": shape,
    }, plain


def _fp8(weight: torch.Tensor) -> Made:
    rows, columns = weight.shape
    scale = torch.linspace(0.001, 0.002, -(-rows // 8) * -(-columns // 8)).reshape(-(-rows // 8), -1)
    spread = scale.repeat_interleave(8, 0)[:rows].repeat_interleave(8, 1)[:, :columns]
    codes = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float() * spread


_INT: Final = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}
FORMATS: Final[dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Made]]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": -1}, _gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"}, _awq),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [8, 8]}, _fp8),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"0": {"weights": _INT}}},
        _pack,
    ),
}


def format_of(architecture: str) -> str:
    """The format in which an architecture is quantized: each gets the same one every time."""
    return sorted(FORMATS)[zlib.crc32(architecture.encode()) % len(FORMATS)]


def quantize(base: Path, form: str, quantized: Path, plain: Path) -> int:
    """Write both checkpoints; return how many weights are quantized. Output layers and embeddings are left alone."""
    fingerprint, _ = read_base(base)
    modules = modules_of(fingerprint)
    if any(module.transposed for module in modules.modules.values()):
        form = "gptq"  # the others quantize no layers that are stored as (in, out)
    config, make = FORMATS[form]
    chosen = {
        f"{path}.weight": path
        for path, module in modules.modules.items()
        if module.kind == "linear"
        and module.weight is not None
        and module.weight.name == f"{path}.weight"
        and not modules.is_output(path)
        and "embed" not in path.rpartition(".")[2]
        and all(size and size % 8 == 0 for size in module.weight.shape)
    }
    for folder in (quantized, plain):
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: value for path in sorted(base.glob("*.safetensors")) for name, value in load_file(path).items()}
    codes = dict(tensors)
    for name, path in chosen.items():
        turned = modules.modules[path].transposed
        stored, weight = make(tensors[name].T.float() if turned else tensors[name].float())
        tensors[name] = weight.T if turned else weight
        del codes[name]
        codes |= {f"{path}.{leaf}": value for leaf, value in stored.items()}
    for folder, values in ((quantized, codes), (plain, tensors)):
        save_file({name: value.contiguous() for name, value in values.items()}, folder / "model.safetensors")
    text = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**text, "dtype": "float32", "quantization_config": config}))
    return len(chosen)


def outcome(architecture: str, base: Path, adapter: Path, folder: Path) -> str:
    """`equal` if a merge into the quantized base gives what one into the plain numbers gives, `refused: …`, `wrong: …`
    or `not covered: …`."""
    if not quantize(base, format_of(architecture), folder / "quantized", folder / "plain"):
        return "not covered: no linear layer of these sizes"
    results, refused = {}, {}
    for kind in ("plain", "quantized"):
        out = folder / f"{kind}-out"
        try:
            merge_folder(folder / kind, [(adapter, 1.0)], out, min_kept=None, threads=1)
        except RegistryError as error:
            refused[kind] = f"refused: {error.code}: {error.detail}"
            continue
        results[kind] = load_file(out / "model.safetensors")
    if "quantized" in refused:
        return refused["quantized"]
    if "plain" in refused:
        return f"wrong: merged into the quantized base alone; {refused['plain']}"
    one, other = results["plain"], results["quantized"]
    if set(one) != set(other):
        return f"wrong: tensors differ: {sorted(set(one) ^ set(other))[:2]}"
    differing = [name for name, value in one.items() if not torch.equal(value, other[name])]
    return f"wrong: {differing[0]} differs" if differing else "equal"
