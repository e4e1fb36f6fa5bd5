"""Check of the config's targets against the modules in the file, both ways."""

from __future__ import annotations

from collections.abc import Callable

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.patterns import ALL_LINEAR
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.report import CONFIG, CheckReport
from lora_contract.adapter.spelling import spelling
from lora_contract.adapter.types import TYPES
from lora_contract.modules import BaseModule, BaseModules


def check_coverage(
    config: AdapterConfig,
    structure: Structure,
    modules: BaseModules,
    targeted: Callable[[str], bool],
    report: CheckReport,
) -> None:
    """Report modules in the file that are not targeted, targeted modules missing in the file, and targets that match no
    module."""
    kind = TYPES[config.peft_type]
    if not kind.targeted or not (config.target_modules or config.target_parameters):
        return
    everything = _is_everything(config)
    named = names(config, modules, targeted)
    held = {resolved.path for path in structure.token_modules if (resolved := modules.resolve(path)) is not None}
    for group in structure.groups.values():
        if group.module is not None:
            held.add(group.module.path)
        if not named(group.path):
            report.add(
                "not-targeted",
                f"The file adapts {group.path}, which target_modules of {CONFIG} does not include.",
                where=group.path,
                expected=_show(config),
                hint="Correct target_modules, or remove the module's tensors.",
            )
    if config.target_modules and (config.peft_type == "LORA" or any(slot.required for slot in kind.slots)):
        spelled = spelling(structure, modules)
        _check_missing(config, held, modules, lambda path: targeted(spelled(path)), everything, report)


def names(config: AdapterConfig, modules: BaseModules, targeted: Callable[[str], bool]) -> Callable[[str], bool]:
    """A predicate: the config names a module, by target_modules, target_parameters or weight tying. targeted: the
    predicate of target_modules."""
    everything = _is_everything(config)
    owners = {name.rpartition(".")[0] for name in config.target_parameters}

    def named(path: str) -> bool:
        module = modules.resolve(path)
        # A parameter may be named without its module (`gate_up_proj`): only fused experts hold such parameters.
        if any(_owns(owner, path) for owner in owners) or (
            "" in owners and module is not None and module.kind == "experts"
        ):
            return True
        if _tied_partner(config, module, modules):
            return True
        if not config.target_modules or (everything and module is not None and modules.is_output(path)):
            return False
        attention = modules.attention_of(path)
        return targeted(path) or (attention is not None and targeted(attention))

    return named


def _check_missing(
    config: AdapterConfig,
    held: set[str],
    modules: BaseModules,
    targeted: Callable[[str], bool],
    everything: bool,
    report: CheckReport,
) -> None:
    kind = TYPES[config.peft_type]
    roots = {_root(path) for path in held}
    experts = any(".experts." in path for path in held)
    adapted = kind.kinds & ({"linear"} if everything else {"linear", "embedding", "conv", "norm"})
    missing = [
        path
        for path, module in modules.modules.items()
        if module.kind in adapted
        and path not in held
        and not (everything and modules.is_output(path))
        and (experts or ".experts." not in path)
        and targeted(path)
    ]
    for path in missing:
        other_part = roots and _root(path) not in roots and _root(path) != path
        report.add(
            "missing-module",
            f"target_modules of {CONFIG} includes {path}, but the file has no tensors for it.",
            # A tower that the adapter leaves alone altogether (vision, audio) may not have been loaded in training.
            severity="warning" if other_part else "error",
            where=path,
            expected=f"tensors for {path}",
            hint="Save the adapter again; if the module was left out on purpose, correct target_modules.",
        )
    if not held and not missing:
        report.add(
            "target-unknown",
            f"target_modules of {CONFIG} ({_show(config)}) matches no module of the base.",
            file=CONFIG,
            where="target_modules",
            found=_show(config),
        )


def _is_everything(config: AdapterConfig) -> bool:
    return isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR


def _owns(owner: str, path: str) -> bool:
    return bool(owner) and (path == owner or path.endswith(f".{owner}"))


def _tied_partner(config: AdapterConfig, module: BaseModule | None, modules: BaseModules) -> bool:
    """With ensure_weight_tying PEFT adapts the output layer along with the embedding it shares a weight with."""
    return config.on("ensure_weight_tying") and module is not None and modules.is_output(module.path)


def _root(path: str) -> str:
    """The path before its first number: the layer stack of a module."""
    parts = path.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:index])
    return path


def _show(config: AdapterConfig) -> str:
    target = config.target_modules
    text = target if isinstance(target, str) else ", ".join((target or [])[:8])
    return text if len(text) <= 120 else text[:117] + "..."
