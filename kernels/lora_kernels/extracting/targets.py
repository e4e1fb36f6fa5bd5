"""Which modules get low-rank factors, and under which names a loader looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lora_contract.adapter.patterns import ALL_LINEAR, names_module
from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import BaseModule, BaseModules, modules_of

# Prefixes on disk that transformers renames while loading: which name a module has in memory depends on its version.
_RENAMED: Final = ("language_model.", "visual.", "vision_tower.", "multi_modal_projector.")
# Model types whose oldest checkpoints were saved without the prefix that the module has in memory.
_PREFIXES: Final = {"gpt2": "transformer", "bloom": "transformer", "opt": "model", "codegen": "transformer"}
_KINDS: Final = ("linear", "embedding", "conv")


def choose(base: BaseFingerprint, targets: Sequence[str] | str | None) -> dict[str, BaseModule]:
    """The modules to extract, by the name of their weight.

    targets: names as PEFT's target_modules takes them (whole paths, or their last segments), a regular expression over
    whole paths, "all-linear" (all linear layers but the output layer); None for all linear layers, the output layer too
    where it has a weight of its own. Embeddings and convolutions only if they are named. Raises RegistryError
    `invalid-request` where a name means no module, `unsupported` where it means one that cannot have factors.
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
    """The path of a module in the running model, which is what an adapter names. path: in the checkpoint.

    Raises RegistryError `unsupported` for checkpoints whose names a loader changes.
    """
    if path.startswith(_RENAMED):
        raise RegistryError(
            "unsupported",
            f"{path} is renamed by transformers when the model is loaded; under which name an adapter must hold it "
            "depends on its version.",
            hint="Leave it out of the targets, or extract from a model whose names stay as they are.",
            module=path,
        )
    return prefixed(base, modules, path)


def ties(modules: BaseModules) -> bool:
    """Whether a loader gives several layers one weight, whatever the files hold, or may do so."""
    return bool(modules.sharing.groups) or modules.sharing.unknown is not None


def shared(modules: BaseModules, module: BaseModule) -> bool:
    """Whether a module's weight is another one's too, or may be."""
    sharing = modules.sharing
    if sharing.unknown is not None:
        return modules.holds_vocabulary(module.path)
    held = {member.tensor.name for group in sharing.groups for member in group.members if member.tensor is not None}
    return f"{module.path}.weight" in held


def prefixed(base: BaseFingerprint, modules: BaseModules, path: str) -> str:
    """`running_path` without its refusals, for comparing names."""
    prefix = _PREFIXES.get(base.model_type)
    return path if prefix is None or prefix in modules.roots or modules.is_output(path) else f"{prefix}.{path}"


def _named(base: BaseFingerprint, modules: BaseModules, names: Sequence[str], pattern: bool) -> list[BaseModule]:
    """pattern: the only name is a regular expression."""
    found: dict[str, BaseModule] = {}
    for name in names:
        means = names_module(name if pattern else [name])
        meant = [
            module for path, module in modules.modules.items() if means(path) or means(prefixed(base, modules, path))
        ]
        if not meant:
            raise RegistryError(
                "invalid-request",
                f"The target {name[:80]!r} means no module of the base.",
                hint="Name modules by their path or its last segment, such as q_proj.",
            )
        for module in meant:
            if not _owns(module) or module.kind not in _KINDS or shared(modules, module):
                raise _unfit(module)
            found[module.path] = module
    return list(found.values())


def _owns(module: BaseModule) -> bool:
    return module.weight is not None and module.weight.name == f"{module.path}.weight"


def _unfit(module: BaseModule) -> RegistryError:
    if module.kind not in _KINDS:
        why = f"is of kind {module.kind}, for which there are no factors"
    elif module.weight is None:
        why = "is stored quantized"
    else:
        why = "shares its weight with another layer: factors on one of them would be another model than the fine-tune"
    return RegistryError(
        "unsupported",
        f"{module.path} {why}.",
        hint="Leave it out of the targets; what changed in it is reported.",
        module=module.path,
    )
