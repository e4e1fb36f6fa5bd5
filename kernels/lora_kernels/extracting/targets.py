"""Selection of the modules that get low-rank factors, and their paths in the running model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_contract.adapter.patterns import ALL_LINEAR, names_module
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, BaseModules, modules_of
from lora_contract.renames import rename_table

# Prefixes on disk that transformers renames in many classes: the name in memory is unknown if the class is.
_RENAMED: Final = ("language_model.", "visual.", "vision_tower.", "multi_modal_projector.")
# Model types whose oldest checkpoints were saved without the prefix that the module has in memory.
_PREFIXES: Final = {"gpt2": "transformer", "bloom": "transformer", "opt": "model", "codegen": "transformer"}
_KINDS: Final = ("linear", "embedding", "conv")


def choose(base: BaseFingerprint, targets: Sequence[str] | str | None) -> dict[str, BaseModule]:
    """Choose the modules to extract, by the name of their weight.

    targets: names as in PEFT's target_modules (whole paths, or their last segments), a regular expression over whole
    paths, or "all-linear" (all linear layers except the output layer); None for all linear layers, including an output
    layer that is not tied. Embeddings and convolutions are included only by name. Raises RegistryError
    `invalid-request` if a name matches no module, `unsupported` if it matches one that cannot have factors.
    """
    modules = modules_of(base)
    if targets is None or (isinstance(targets, str) and targets.lower() == ALL_LINEAR):
        linear = [module for module in modules.modules.values() if module.kind == "linear" and _owns(module)]
        inner = targets is not None or ties(modules)
        chosen = [module for module in linear if not (inner and modules.is_output(module.path))]
    else:
        chosen = _named(base, modules, [targets] if isinstance(targets, str) else targets, isinstance(targets, str))
    return {f"{module.path}.weight": module for module in sorted(chosen, key=lambda module: module.path)}


def running_path(base: BaseFingerprint, modules: BaseModules, path: str) -> str:
    """The path of a module in the running model, which adapters use. path: in the checkpoint.

    Raises RegistryError `unsupported` for names that a loader changes in an unknown way, and for weights that it joins
    or splits.
    """
    naming = modules.naming
    made = naming.conversion(path)
    if made is not None and not (made.stacks_experts and base.model_type in rename_table().peft.experts):
        raise RegistryError(
            "unsupported",
            f"{path} is no module of the loaded model: transformers makes {' and '.join(made.made)} of it.",
            hint="Remove it from the targets; its change is reported.",
            module=path,
        )
    if naming.known:
        return prefixed(base, modules, path if made is not None else naming.today(path))
    if path.startswith(_RENAMED):
        raise RegistryError(
            "unsupported",
            f"{path} is renamed by transformers when the model is loaded; the name that an adapter needs depends on "
            "its version.",
            hint="Remove it from the targets, or extract from a model whose names are not changed.",
            module=path,
        )
    return prefixed(base, modules, path)


def ties(modules: BaseModules) -> bool:
    """Whether a loader ties weights, or may tie them, whatever the files contain."""
    return bool(modules.sharing.groups) or modules.sharing.unknown is not None


def shared(modules: BaseModules, module: BaseModule) -> bool:
    """Whether a module shares its weight with another one, or may share it."""
    sharing = modules.sharing
    if sharing.unknown is not None:
        return modules.holds_vocabulary(module.path)
    held = {member.tensor.name for group in sharing.groups for member in group.members if member.tensor is not None}
    return f"{module.path}.weight" in held


def prefixed(base: BaseFingerprint, modules: BaseModules, path: str) -> str:
    """Like `running_path`, without errors, to compare names."""
    prefix = _PREFIXES.get(base.model_type)
    return path if prefix is None or prefix in modules.roots or modules.is_output(path) else f"{prefix}.{path}"


def _named(base: BaseFingerprint, modules: BaseModules, names: Sequence[str], pattern: bool) -> list[BaseModule]:
    """pattern: the only name is a regular expression."""
    found: dict[str, BaseModule] = {}
    for name in names:
        matches = names_module(name if pattern else [name])
        matched = [
            module
            for path, module in modules.modules.items()
            if matches(path) or matches(prefixed(base, modules, path))
        ]
        if not matched:
            raise RegistryError(
                "invalid-request",
                f"The target {name[:80]!r} matches no module of the base.",
                hint="Name modules by their path or its last segment, such as q_proj.",
            )
        for module in matched:
            if not _owns(module) or module.kind not in _KINDS or shared(modules, module):
                raise _without_factors(module)
            found[module.path] = module
    return list(found.values())


def _owns(module: BaseModule) -> bool:
    return module.weight is not None and module.weight.name == f"{module.path}.weight"


def _without_factors(module: BaseModule) -> RegistryError:
    if module.kind not in _KINDS:
        why = f"is of kind {module.kind}, which cannot have factors"
    elif module.weight is None:
        why = "is stored quantized"
    else:
        why = "shares its weight with another layer: factors on one of them would not reproduce the fine-tune"
    return RegistryError(
        "unsupported",
        f"{module.path} {why}.",
        hint="Remove it from the targets; its change is reported.",
        module=module.path,
    )
