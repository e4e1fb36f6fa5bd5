"""mlx-lm to PEFT.

mlx-lm computes `y + scale * (x @ lora_a) @ lora_b` with lora_a (in, r) and lora_b (r, out); PEFT computes
`y + alpha / r * x @ A.T @ B.T` with A (r, in) and B (out, r). DoRA's magnitude `m` has one number for each row of the
output in both.
Releases before 0.20 had `alpha` in `lora_parameters` and multiplied by scale * alpha / rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_contract.modules import BaseModule
from lora_reg.importing.formats.document import PREFIX, Converted, Scaled, lora_config
from lora_reg.importing.formats.tensors import Tensor, refused


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Whether adapter_config.json was written by mlx-lm."""
    return "peft_type" not in config and (
        isinstance(config.get("lora_parameters"), dict) or config.get("fine_tune_type") in ("lora", "dora", "full")
    )


def base_of(config: Mapping[str, Any]) -> str | None:
    """The base that mlx-lm was given: a Hub id or a path."""
    model = config.get("model")
    return model if isinstance(model, str) and model else None


def convert(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    known: Mapping[str, BaseModule],
    tied: bool,
    base: str,
) -> Converted:
    """Convert an adapter of mlx-lm.

    Args:
        config: adapter_config.json.
        tensors: of adapters.safetensors.
        known: modules of the base by path.
        tied: the base's output layer shares the weight of the input embedding.
        base: value of base_model_name_or_path.

    Raises RegistryError `rejected`, with the reason.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise refused(
            f"fine_tune_type is {kind!r}: its file holds whole weights, no adapter",
            hint="Fuse it with `mlx_lm.fuse`, and extract an adapter with `lora-reg extract`.",
        )
    scale = _scale(config)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf not in ("lora_a", "lora_b", "m") or not path:
            raise refused(f"its tensor {name} is none of lora_a, lora_b and m")
        parts.setdefault(path, {})[leaf] = tensor
    modules: dict[str, Scaled] = {}
    written: dict[str, Tensor] = {}
    for path, part in parts.items():
        rank = _rank(path, part, dora=kind == "dora")
        modules[path] = Scaled(rank, scale * rank)
        embedding = path in known and known[path].kind == "embedding"
        if embedding and (tied or kind == "dora"):
            why = "DoRA takes its norm along another dimension" if kind == "dora" else "its output layer is adapted too"
            raise refused(f"{path} is an embedding, on which mlx-lm and PEFT differ: in mlx-lm {why}")
        stem = f"{PREFIX}{path}"
        first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        written[f"{stem}.{first}"] = part["lora_a"].transposed()
        written[f"{stem}.{second}"] = part["lora_b"].transposed()
        if "m" in part:
            written[f"{stem}.lora_magnitude_vector"] = part["m"].reshaped(part["m"].elements)
    document = lora_config(
        modules, known=known, base=base, options={"task_type": "CAUSAL_LM", "use_dora": kind == "dora"}
    )
    return Converted(document, written, (f"scale {scale:g} of mlx-lm is lora_alpha / r",))


def _scale(config: Mapping[str, Any]) -> float:
    given = config.get("lora_parameters")
    parameters = given if isinstance(given, dict) else {}
    scale, alpha, rank = (parameters.get(key) for key in ("scale", "alpha", "rank"))
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        raise refused("adapter_config.json has no lora_parameters.scale")
    if alpha is None:
        return float(scale)
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1:
        raise refused("lora_parameters has an alpha or a rank that is not a number")
    # Before `lora_layers` was renamed to `num_layers`, alpha counted; releases of today ignore it.
    if alpha == rank or "lora_layers" in config:
        return float(scale) * (alpha / rank)
    raise refused(
        f"lora_parameters has the alpha {alpha:g} beside the scale {scale:g}, which some releases of mlx-lm "
        f"multiplied in (scale {scale * alpha / rank:g}) and others ignored",
        hint="Remove alpha from lora_parameters, with scale as it was in training.",
    )


def _rank(path: str, part: Mapping[str, Tensor], *, dora: bool) -> int:
    if not {"lora_a", "lora_b"} <= part.keys():
        raise refused(f"{path} has only one of lora_a and lora_b")
    if ("m" in part) is not dora:
        raise refused(f"{path} has {'a' if 'm' in part else 'no'} magnitude m, and fine_tune_type says otherwise")
    first, second = part["lora_a"].shape, part["lora_b"].shape
    if len(first) == 3:
        raise refused(f"{path} adapts experts that mlx-lm keeps as one tensor, and the base does not")
    if len(first) != 2 or len(second) != 2 or first[1] != second[0]:
        raise refused(f"{path} has lora_a {list(first)} and lora_b {list(second)}, expected (in, r) and (r, out)")
    return first[1]
