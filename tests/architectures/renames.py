"""What transformers renames of a model class on loading: the transforms of its conversion mapping, as data."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import torch
import transformers
from transformers import conversion_mapping
from transformers.core_model_loading import (
    GroupWeightRename,
    WeightConverter,
    apply_renamings,
    rename_source_key,
)

from tests.architectures.tiny import config_class, tiny_config

Part = tuple[str, str, str]
"""Key of the conversion mapping, path of the submodel in the model, path of its config in the model's config."""
_ALIASES: Final = conversion_mapping._MODEL_TO_CONVERSION_PATTERN


class NotTransformers(Exception):
    """The rows are not made as transformers collects its transforms."""


def meta_model(name: str, model_type: str) -> Any:
    """The tiny model of a class, or the default one if there is no tiny one. Raises whatever the class raises."""
    kind = getattr(transformers, name)
    configs = config_class(kind, model_type)
    try:
        return _meta(kind, tiny_config(configs))
    except Exception:
        return _meta(kind, tiny_config(configs, shrink=False))


def _meta(kind: Any, config: Any) -> Any:
    with torch.device("meta"):
        return kind(config)


def class_row(model: Any) -> dict[str, Any] | None:
    """The row of a class; None if nothing is renamed in it, and nothing could be with other submodels."""
    parts, slots = list(_parts(model)), _slots(model)
    _compare(model, parts)
    if not parts and not slots:
        return None
    row: dict[str, Any] = {"prefix": model.base_model_prefix}
    if parts:
        row["parts"] = [list(part) for part in parts]
    if slots:
        row["slots"] = slots
    if kept := sorted({re.sub(r"\d+", "#", name) for name in _kept(model)}):
        row["kept"] = kept
    return row


def root_row(name: str, model_type: str) -> dict[str, Any] | None:
    """The row of a class that cannot be made here: the transforms of the whole model alone."""
    key = next((key for key in (name, model_type) if rules_of(key)), None)
    return None if key is None else {"prefix": getattr(transformers, name).base_model_prefix, "parts": [[key, "", ""]]}


def rules_of(key: str) -> list[dict[str, Any]] | None:
    """The transforms under a key of the conversion mapping; None if there are none."""
    found = conversion_mapping.get_checkpoint_conversion_mapping(key)
    return None if found is None else [_rule(transform) for transform in found]


def _rule(transform: Any) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "find": transform.compiled_sources.pattern,
        "put": transform.target_patterns if isinstance(transform, GroupWeightRename) else transform.target_patterns[:1],
    }
    if isinstance(transform, WeightConverter):
        rule["made"] = [repr(operation) for operation in transform.operations]
        rule["put"] = transform.target_patterns
        rule["of"] = transform.source_patterns
    if getattr(transform, "offset", 0):
        rule["offset"] = transform.offset
    return rule


def _submodels(model: Any) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            yield path, module


def _parts(model: Any) -> Iterator[Part]:
    """As `get_model_conversion_mapping` collects them."""
    configs = _configs(model.config)
    seen: dict[str, list[str]] = defaultdict(list)

    def claimed(identifier: str, path: str) -> bool:
        return any(owner == "" or path.startswith(f"{owner}.") for owner in seen[identifier])

    for path, module in _submodels(model):
        name, model_type = type(module).__name__, module.config.model_type
        if claimed(name, path):
            continue
        by_class = conversion_mapping.get_checkpoint_conversion_mapping(name) is not None
        if not by_class and model_type and claimed(model_type, path):
            continue
        key = name if by_class else model_type
        if not key or conversion_mapping.get_checkpoint_conversion_mapping(key) is None:
            continue
        yield key, path, configs.get(id(module.config), "")
        seen[name].append(path)
        if not by_class:
            seen[model_type].append(path)


def _slots(model: Any) -> dict[str, list[str]]:
    """By the path of a nested config, the path of its submodel and the model type that it has by default."""
    configs = _configs(model.config)
    found: dict[str, list[str]] = {}
    for path, module in _submodels(model):
        config = configs.get(id(module.config), "")
        if path and config and config not in found:
            found[config] = [path, module.config.model_type]
    return found


def _configs(config: Any, path: str = "") -> dict[int, str]:
    found: dict[int, str] = {id(config): path}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig) and id(value) not in found:
            found |= _configs(value, f"{path}.{name}".removeprefix("."))
    return found


def _kept(model: Any) -> Iterator[str]:
    """Today's names that the rules would change, and transformers does not, since the model has them."""
    transforms = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    state = model.state_dict()
    for name in state:
        if apply_renamings(name, renamings) == name:
            continue
        renamed, _ = rename_source_key(name, renamings, [], model.base_model_prefix, state)
        if renamed == name or renamed not in state:
            yield name


def _compare(model: Any, parts: list[Part]) -> None:
    """Raise NotTransformers if the parts are not what transformers applies."""
    wanted = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    made = [
        (rule["find"], None if not path else path.removeprefix(model.base_model_prefix).removeprefix("."))
        for key, path, _ in parts
        for rule in rules_of(key) or ()
    ]
    if made != [(transform.compiled_sources.pattern, transform.scope_prefix) for transform in wanted]:
        raise NotTransformers(f"{type(model).__name__}: {parts}")


def shared_key(key: str) -> str:
    """The key whose transforms a key shares."""
    other = _ALIASES.get(key)
    return other if other is not None and rules_of(other) == rules_of(key) else key
