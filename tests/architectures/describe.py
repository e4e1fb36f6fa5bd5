"""What transformers knows of a model class: which of its parameters are one, and which setting says so."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from tests.architectures.tiny import config_class, tiny_config

Group = tuple[str, ...]


def describe(name: str, model_type: str, *, shrink: bool = True) -> dict[str, Any] | None:
    """A row of the table; None for a class whose parameters all are their own and that has no output layer.

    shrink: of a tiny model, else of the default one. Raises whatever the class raises.
    """
    kind = getattr(transformers, name)
    configs = config_class(kind, model_type)
    make = _maker(kind, configs, shrink)
    paths = ["", *(path for path, _ in _nested(make(None).config))]
    model = make(dict.fromkeys(paths, True))
    groups, patterns = _groups(model), _patterns(model)
    embedding, output = _name_of(model, model.get_input_embeddings), _name_of(model, model.get_output_embeddings)
    bypassed = _bypassed(model)
    if not groups and not patterns and not bypassed and output is None:
        return None
    governed: dict[Group, list[str]] = {group: [] for group in groups}
    for path in paths:
        left = set(_groups(make({other: other != path for other in paths})))
        for group in groups:
            if group not in left:
                governed[group].append(path)
    untied = set(groups) - set(_groups(make(dict.fromkeys(paths, False))))
    if any(not governed[group] for group in untied):
        alone = {path: set(_groups(make({other: other == path for other in paths}))) for path in paths}
        keeping = {group: [path for path in paths if group in alone[path]] for group in untied}
    default = set(_groups(make(None)))
    stored = _stored_names(model, {member for group in (*groups, [embedding, output]) for member in group if member})
    nested = {
        path: getattr(_at(model.config, path), "model_type", "")
        for path, submodule in _owners(model)
        if path and submodule is not None
    }
    row: dict[str, Any] = {
        "groups": [
            {"members": group, "by": by or keeping[group], "default": group in default, "every": not by}
            if group in untied
            else {"members": group}
            for group, by in governed.items()
        ],
        "embedding": embedding,
        "output": output,
    }
    if stored:
        row["stored"] = stored
    if nested:
        row["nested"] = nested
    if patterns:
        row["patterns"] = patterns
    if embedding is not None and _computed(model.get_input_embeddings()):
        row["computed"] = True
    if bypassed:
        row["bypassed"] = bypassed
    return row


def _maker(kind: Any, configs: Any, shrink: bool) -> Callable[[dict[str, bool] | None], Any]:
    def make(ties: dict[str, bool] | None) -> Any:
        config = tiny_config(configs, ties, shrink=shrink)
        with torch.device("meta"):
            model = kind(config)
        model.tie_weights()
        return model

    return make


def _groups(model: Any) -> list[Group]:
    """The parameters that are one, sorted."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return sorted(tuple(sorted(group)) for group in names.values() if len(group) > 1)


def _patterns(model: Any) -> list[str]:
    """Tied keys that name more than one parameter each: they grow with the number of layers."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: set[str] = set()
    for path, submodule in model.named_modules():
        keys = getattr(submodule, "_tied_weights_keys", None)
        for pair in (keys or {}).items() if isinstance(submodule, transformers.PreTrainedModel) else ():
            names = [f"{path}.{key}".removeprefix(".").removesuffix("$") for key in pair]
            if not parameters.issuperset(names):
                found.update(names)
    return sorted(found)


def _computed(embedding: Any) -> bool:
    """Whether an embedding has a forward pass of its own, but for a scale, which PEFT applies too."""
    own = type(embedding).forward is not torch.nn.Embedding.forward and not hasattr(embedding, "embed_scale")
    return isinstance(embedding, torch.nn.Embedding) and own


def _bypassed(model: Any) -> list[str]:
    """Paths, as regular expressions, of layers whose weight the code of their owner reads and which it does not call, or not always."""
    found: set[str] = set()
    for path, owner in model.named_modules():
        source = _source(type(owner))
        for name, child in owner.named_children():
            read = re.search(_READ.format(name), source) and not re.search(rf"self\.{name}\(", source)
            multiplied = re.search(rf"self\.{name}\.weight @|@ self\.{name}\.weight", source)
            if isinstance(child, torch.nn.Linear | torch.nn.Embedding) and (read or multiplied):
                found.add(re.sub(r"\d+", r"\\d+", re.escape(f"{path}.{name}".removeprefix("."))))
    return sorted(found)


_READ: Final = r"self\.{}\.weight\b(?!\.(?:dtype|device|shape|size|data|new))"


@cache
def _source(kind: type) -> str:
    """The code of a class and of those of transformers' models that it inherits from."""
    classes = [each for each in kind.__mro__ if each.__module__.startswith("transformers.models.")]
    return "\n".join(_bodies(each.__module__).get(each.__qualname__, "") for each in classes)


@cache
def _bodies(module: str) -> dict[str, str]:
    """The code of each class of a module; `inspect.getsource` parses the whole module for every class."""
    text = Path(sys.modules[module].__file__ or "").read_text(encoding="utf-8")
    lines = text.splitlines()
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in found}


def _nested(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            here = f"{path}.{name}".removeprefix(".")
            yield here, value
            yield from _nested(value, here)


def _owners(model: Any) -> Iterator[tuple[str, Any]]:
    """The nested configs of models inside that tie parameters of their own."""
    paths = {id(value): path for path, value in _nested(model.config)}
    for prefix, submodule in model.named_modules():
        tied = isinstance(submodule, transformers.PreTrainedModel) and getattr(submodule, "_tied_weights_keys", None)
        if prefix and tied:
            yield paths.get(id(submodule.config), ""), submodule


def _at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _name_of(model: Any, getter: Callable[[], Any]) -> str | None:
    """The name of the weight of the module that a getter returns; None where there is none."""
    try:
        module = getter()
    except (NotImplementedError, AttributeError, TypeError):
        return None
    weight = getattr(module, "weight", None)
    if weight is None:
        return None
    found = [path for path, other in model.named_modules(remove_duplicate=False) if other is module]
    return f"{found[0]}.weight" if found else None


def _stored_names(model: Any, names: set[str]) -> dict[str, str]:
    """What a checkpoint calls parameters where it is another name than the model's."""
    state = {name: torch.empty(1, device="meta") for name in names}
    try:
        reverted = revert_weight_conversion(model, dict(state))
    except Exception:
        reverted = {}
    back = {id(tensor): name for name, tensor in reverted.items()}
    return {name: back[id(tensor)] for name, tensor in sorted(state.items()) if back.get(id(tensor), name) != name}
