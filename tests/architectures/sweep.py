"""Merge adapters into a tiny model of an architecture and compare with the adapted model that was not merged.

Every parameter of the merged model, loaded from its files, must be what the adapted model computes with, module by
module, and its outputs must be the same wherever inputs can be made up.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper

from lora_contract.errors import RegistryError
from lora_kernels.merging import merge_folder
from tests.architectures.quantize import outcome as quantized_outcome
from tests.architectures.tiny import VOCABULARY, config_class, tiny_config

CASES: Final = ("linear", "embedding", "output", "saved")
QUANTIZED: Final = "linear, quantized base"
MAX_PARAMETERS: Final = 30_000_000
Example: TypeAlias = tuple[dict[str, Any], torch.Tensor]


class NotCovered(Exception):
    """No such case, or none that can be made up: the reason."""


def sweep(name: str, model_type: str, folder: Path, *, quantized: bool = True) -> dict[str, str]:
    """The outcome of each case, and of the merge of linear layers into a quantized base if wanted: `equal`,
    `refused: …`, `wrong: …` or `not covered: …`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = getattr(transformers, name)
            save(kind, model_type, folder / "base")
            model = kind.from_pretrained(folder / "base", dtype=torch.float32).eval()
        except Exception as error:
            return dict.fromkeys((*CASES, QUANTIZED), f"not covered: {one_line(error)}")
        example = example_of(model)
        found = {case: _outcome(case, kind, model, example, folder) for case in CASES}
        known = found["linear"]
        if not quantized:
            return found
        if not known.startswith("not covered"):
            known = quantized_outcome(name, folder / "base", folder / "linear", folder)
        return {**found, QUANTIZED: known}


def save(kind: Any, model_type: str, folder: Path) -> None:
    config = tiny_config(config_class(kind, model_type))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotCovered(f"{size / 1e6:.0f} million parameters at the least")
    torch.default_generator.manual_seed(0)
    kind(config).save_pretrained(folder)


def _outcome(case: str, kind: Any, model: Any, example: Example | None, folder: Path) -> str:
    try:
        try:
            adapted = _adapted(case, model, folder / case)
        except ValueError as error:
            if "incompatible with Mamba" not in str(error):
                raise
            adapted = _adapted(case, model, folder / case, without="out_proj")
    except NotCovered as reason:
        return f"not covered: {reason}"
    except Exception as error:
        return f"not covered: PEFT: {one_line(error)}"
    try:
        merge_folder(folder / "base", [(folder / case, 1.0)], folder / f"{case}-out", min_kept=None)
    except RegistryError as error:
        return f"refused: {error.code}: {error.detail}"
    merged = kind.from_pretrained(folder / f"{case}-out", dtype=torch.float32).eval()
    fault = other_parameters(adapted, merged, model)
    if fault is None and example is not None:
        fault = other_outputs(adapted, merged, *example)
    if fault is not None:
        return f"wrong: {fault}"
    return "equal" if example is not None else "equal (weights)"


def _adapted(case: str, model: Any, folder: Path, *, without: str = "no layer") -> Any:
    """without: the last segment of paths that PEFT refuses in this model."""
    targets = [path for path in _targets(case, model) if path.rpartition(".")[2] != without]
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": targets}
    if case == "saved":
        embedding = _path(model, model.get_input_embeddings)
        if embedding is None:
            raise NotCovered("no input embedding")
        settings["modules_to_save"] = [embedding]
    return adapt(model, settings, folder)


def adapt(model: Any, settings: dict[str, Any], folder: Path) -> Any:
    """Save a random LoRA adapter of a model, and return the adapted copy of the model."""
    torch.default_generator.manual_seed(1)
    adapted = get_peft_model(_copy(model), LoraConfig(**settings)).eval()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.normal_(0, 0.3 if "lora_" in name else 0.05)
    adapted.create_or_update_model_card = lambda _folder: None  # a third of the time of saving
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.base_model.model


def _copy(model: Any) -> Any:
    """The model's modules anew. Weights and configs are shared, since an adapter changes neither."""
    shared = [*model.parameters(), *model.buffers()]
    shared += [module.config for module in model.modules() if hasattr(module, "config")]
    return copy.deepcopy(model, {id(each): each for each in shared})


def _targets(case: str, model: Any) -> list[str]:
    output, embedding = _path(model, model.get_output_embeddings), _path(model, model.get_input_embeddings)
    if case == "embedding":
        if embedding is None or not isinstance(model.get_submodule(embedding), torch.nn.Embedding):
            raise NotCovered("no input embedding")
        return [embedding]
    if case == "output":
        if output is None or type(model.get_submodule(output)) is not torch.nn.Linear:
            raise NotCovered("no linear output layer")
        return [output]
    linear = list(linear_layers(model, output))
    if not linear:
        raise NotCovered("no linear layer")
    return linear[:1] if case == "saved" else linear


def linear_layers(model: Any, output: str | None = None) -> Iterator[str]:
    packed = [path for path, module in model.named_modules() if isinstance(module, torch.nn.MultiheadAttention)]
    for path, module in model.named_modules():
        plain = type(module) is torch.nn.Linear or isinstance(module, transformers.pytorch_utils.Conv1D)
        if plain and path != output and not path.startswith(tuple(f"{owner}." for owner in packed)):
            yield path


def _path(model: Any, getter: Callable[[], Any]) -> str | None:
    try:
        module = getter()
    except (NotImplementedError, AttributeError, TypeError):
        return None
    return next((path for path, other in model.named_modules() if other is module and path), None)


def effective(adapted: Any) -> dict[str, torch.Tensor]:
    """What the adapted model computes with, by the names that the parameters have without an adapter."""
    found: dict[str, torch.Tensor] = {}
    for name, value in adapted.state_dict().items():
        if ".lora_" not in name and ".original_module." not in name:
            found[name.replace(".base_layer", "").replace(".modules_to_save.default", "")] = value
    for path, wrapper in adapted.named_modules():
        if isinstance(wrapper, LoraLayer):
            leaf = wrapper.parameter_name if isinstance(wrapper, ParamWrapper) else "weight"
            name = f"{path.replace('.base_layer', '')}.{leaf}"
            found[name] = found[name] + wrapper.get_delta_weight("default")
    return found


def other_parameters(adapted: Any, merged: Any, model: Any) -> str | None:
    """The first parameter that is not what it should be; None if all are."""
    wanted, stored = effective(adapted), merged.state_dict()
    original = model.state_dict()
    if set(wanted) != set(stored):
        return f"parameters differ: {sorted(set(wanted) ^ set(stored))[:2]}"
    for name, value in wanted.items():
        if not value.is_floating_point():
            continue
        error = (stored[name].float() - value.float()).abs().max().item() if value.numel() else 0.0
        scale = max(value.abs().max().item(), 1e-3) if value.numel() else 1.0
        if not error <= 1e-5 * scale and not (math.isnan(error) and original[name].isnan().any()):
            return f"{name} is off by {error:.2g}"
    return None


def other_outputs(adapted: Any, merged: Any, inputs: dict[str, Any], base: torch.Tensor) -> str | None:
    """base: the output of the model without an adapter."""
    want, got = (_run(each, inputs) for each in (adapted, merged))
    error, effect = (got - want).abs().max().item(), (want - base).abs().max().item()
    scale = max(want.abs().max().item(), effect)
    return (
        None if error <= 2e-4 * scale + 1e-6 else f"outputs are off by {error:.2g}, the adapter's effect {effect:.2g}"
    )


def _run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    torch.default_generator.manual_seed(2)
    with torch.no_grad():
        found = model(**inputs)
    logits = getattr(found, "logits", None)
    result = logits if isinstance(logits, torch.Tensor) else found[0]
    if not isinstance(result, torch.Tensor) or not result.isfinite().all():
        raise NotCovered("no finite output")
    return result.float()


def example_of(model: Any) -> Example | None:
    """Inputs that the model takes and its output; None if none of those that can be made up are."""
    for inputs in _candidates(model):
        try:
            return inputs, _run(model, inputs)
        except Exception:  # whatever a model raises for inputs that it does not take
            continue
    return None


def _candidates(model: Any) -> Iterator[dict[str, Any]]:
    taken = set(inspect.signature(model.forward).parameters)
    torch.default_generator.manual_seed(3)
    tokens = torch.randint(3, VOCABULARY // 2, (2, 16))
    text = {"input_ids": tokens}
    if "decoder_input_ids" in taken:
        text["decoder_input_ids"] = tokens[:, :7]
    if "attention_mask" in taken:
        text["attention_mask"] = torch.ones_like(tokens)
    options: list[dict[str, Any]] = [text, {"input_ids": tokens}] if "input_ids" in taken else []
    config = model.config
    if {"sample", "timestep", "encoder_hidden_states"} <= taken:
        image = torch.randn(1, config.in_channels, config.sample_size, config.sample_size)
        text = torch.randn(1, 4, config.cross_attention_dim)
        yield {"sample": image, "timestep": 1, "encoder_hidden_states": text}
    size = (
        getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", 32) or 32
    )
    size = size if isinstance(size, int) else size[0]
    channels = getattr(config, "num_channels", 3) or 3
    decoder = {"decoder_input_ids": tokens[:, :7]} if "decoder_input_ids" in taken else {}
    if "pixel_values" in taken:
        for side in (size, 64, 224):
            image = torch.randn(1, channels, side, side)
            options += [{"pixel_values": image}, {"pixel_values": image, **{k: v[:1] for k, v in decoder.items()}}]
            options.append({"pixel_values": image, "input_ids": tokens[:1]})
    if "input_values" in taken:
        options.append({"input_values": torch.randn(2, 4000), **decoder})
    if "input_features" in taken:
        bins = getattr(config, "num_mel_bins", None) or getattr(
            getattr(config, "encoder_config", None), "num_mel_bins", 16
        )
        frames = 2 * getattr(config, "max_source_positions", 64)
        for shape in ((2, bins, frames), (2, frames, bins), (2, 64, bins), (2, 64, 160)):
            options.append({"input_features": torch.randn(shape), **decoder})
            if "input_ids" in taken:
                options.append({"input_features": torch.randn(shape), "input_ids": tokens})
    yield from options


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 140 else f"{text[:137]}..."
