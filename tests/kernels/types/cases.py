"""Tiny models with one module of every kind, and an adapter of any PEFT type on them, made, perturbed and saved by
PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.kernels.checkpoints import write_base

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16}

Modules = Callable[[], dict[str, nn.Module]]


class Tree(nn.Module):
    """A model of named modules; nothing is ever computed with it."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for path, module in modules.items():
            at: nn.Module = self
            *parents, leaf = path.split(".")
            for parent in parents:
                if not hasattr(at, parent):
                    at.add_module(parent, nn.Module())
                at = getattr(at, parent)
            at.add_module(leaf, module)


@dataclass(frozen=True)
class Case:
    """targets: names of modules. size: of the perturbation of every adapter tensor. edit: a last hand on the adapter's
    model before it is saved. seed: of the perturbation. integers in the file stay as PEFT made them."""

    name: str
    config: Callable[[], peft.PeftConfig]
    modules: Modules
    transposed: bool = False
    size: float = 0.1
    edit: Callable[[nn.Module], None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        return self.name


def base_folder(case: Case, folder: Path, dtype: str) -> Path:
    """The case's model with random weights, as a checkpoint of that dtype."""
    state = _state(case, dtype)
    model_type = "gpt2" if case.transposed else "llama"
    return write_base(folder, [{name: (dtype, values) for name, values in state.items()}], model_type=model_type)


def adapter_folder(case: Case, folder: Path, dtype: str, seed: int = 0, stored: str = "F32") -> Path:
    """An adapter of the case, trained on the base of that dtype: every one of its numbers is random. stored: type of
    the base's weights in memory."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(_tree(case, dtype).to(_TORCH[stored]), case.config())
    random = np.random.default_rng((case.seed, seed, 77))
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad and parameter.is_floating_point():
                noise = case.size * random.standard_normal(tuple(parameter.shape))
                parameter.add_(torch.from_numpy(noise).to(parameter.dtype))
    if case.edit is not None:
        case.edit(model)
    model.save_pretrained(folder, save_embedding_layers=False)
    # PEFT names the module that a model of no known task comes from; the registry refuses such a config.
    document = json.loads((folder / "adapter_config.json").read_text())
    document["auto_mapping"] = None
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def merged_by_peft(case: Case, adapters: list[Path]) -> dict[str, np.ndarray]:
    """The adapters loaded from their folders and merged one after the other, in float32."""
    model: nn.Module = _tree(case, "F32")
    if case.config().peft_type == peft.PeftType.POLY:
        return _applied(case, peft.PeftModel.from_pretrained(model, adapters[0]))
    for folder in adapters:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return {name: values.detach().numpy() for name, values in model.state_dict().items()}


def _applied(case: Case, model: nn.Module) -> dict[str, np.ndarray]:
    """What PEFT does not merge: the weights as the layers' answers to unit vectors, for the first task."""
    state = {name: values.detach().numpy() for name, values in _tree(case, "F32").state_dict().items()}
    for name, module in model.eval().named_modules():
        if isinstance(module, peft.tuners.poly.Linear):
            with torch.no_grad():
                answers = module(torch.eye(module.in_features)[None], task_ids=torch.tensor([0]))[0]
            if module.base_layer.bias is not None:
                answers = answers - module.base_layer.bias
            state[f"{name.removeprefix('base_model.model.')}.weight"] = answers.T.detach().numpy()
    return state


def unmerged(case: Case, adapter: Path, stored: str) -> Any:
    """The case's model, its weights of the type `stored`, with the adapter on it."""
    return peft.PeftModel.from_pretrained(_tree(case, stored).to(_TORCH[stored]), adapter)


def _tree(case: Case, dtype: str) -> nn.Module:
    tree = Tree(case.modules())
    state = {name: torch.from_numpy(values.astype(np.float32)) for name, values in _state(case, dtype).items()}
    tree.load_state_dict(state)
    return tree


def _state(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """Weights that `dtype` holds exactly."""
    random = np.random.default_rng(5)
    state = {}
    for name, parameter in Tree(case.modules()).state_dict().items():
        values = torch.from_numpy(0.05 * random.standard_normal(tuple(parameter.shape)))
        state[name] = values.to(torch.bfloat16 if dtype == "BF16" else torch.float32).double().numpy()
    return state


def linears(*sizes: tuple[int, int], bias: bool = False) -> Modules:
    """Linear modules of sizes (in, out)."""
    return lambda: {f"model.layers.{i}.proj": nn.Linear(a, b, bias=bias) for i, (a, b) in enumerate(sizes)}


def conv1ds(*sizes: tuple[int, int]) -> Modules:
    """Modules that store (in, out), of sizes (in, out)."""
    return lambda: {f"h.{i}.mlp.c_fc": Conv1D(b, a) for i, (a, b) in enumerate(sizes)}


def convolutions(*made: Callable[[], nn.Module]) -> Modules:
    return lambda: {f"features.{i}.conv": make() for i, make in enumerate(made)}
