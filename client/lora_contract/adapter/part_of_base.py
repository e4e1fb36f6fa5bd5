"""An adapter of a part of the base, such as the language model of a vision-language model, trained on that part alone:
its names lack the path of the part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.report import CheckReport
from lora_contract.adapter.sorting import ModuleTensors, modules_in
from lora_contract.modules import BaseModule, BaseModules
from lora_contract.tensors import Header

_CONSEQUENCES: Final = frozenset({"module-not-in-base", "missing-module", "target-unknown", "base-mismatch"})
_MOST: Final = 64


def report_part(config: AdapterConfig, header: Header, modules: BaseModules, report: CheckReport) -> None:
    """Replace the findings on missing modules by one if the base has all of them under one prefix."""
    first, count, fitting = "", 0, list[str]()
    for group in modules_in(config.peft_type, header):
        if modules.resolve(group.path) is not None:
            continue
        if not count:
            first, fitting = group.path, list(_prefixes(group.path, modules))
        count += 1
        fitting = [prefix for prefix in fitting if _fits(prefix, group, modules)]
        if not fitting:
            return
    if not fitting:
        return
    prefix, others = fitting[0], fitting[1:]
    also = f" (or {', '.join(others)})" if others else ""
    report.forget(_CONSEQUENCES)
    report.add(
        "part-of-base",
        f"The adapter was trained on a part of this base alone: the base has its {count} modules, such as "
        f"{first}, under {prefix}{also}.",
        where=first,
        found=first,
        expected=_today(prefix, first, modules),
        hint=f"Say so, and its names are changed to the base's: `lora-reg push DIR --prefix {prefix}`.",
    )


def place_of_part(path: str, modules: BaseModules) -> str | None:
    """A prefix under which the base has a module that it lacks; None if it has it nowhere."""
    return next(_prefixes(path, modules), None)


def renamed_module(prefix: str, path: str, modules: BaseModules) -> str:
    """Today's path of an adapter's module under a prefix; the path itself if the base has it as it is, or has not."""
    return path if modules.under(prefix, path) is None else _today(prefix, path, modules)


def _today(prefix: str, path: str, modules: BaseModules) -> str:
    found = modules.under(prefix, path)
    return path if found is None else modules.naming.today(found.path)


def _prefixes(path: str, modules: BaseModules) -> Iterator[str]:
    """Today's prefixes under which the base has a module, that with the token embedding first."""
    embedding = modules.input_embedding()
    own = modules.naming.today(embedding.path) if embedding is not None else ""
    found: dict[str, bool] = {}
    for rest in dict.fromkeys((path.partition(".")[2], path)):
        for each in modules.modules:
            today = modules.naming.today(each)
            if rest and today.endswith(f".{rest}"):
                prefix = today[: -len(rest) - 1]
                found[prefix] = own.startswith(f"{prefix}.")
    yield from sorted(found, key=lambda prefix: (not found[prefix], prefix))[:_MOST]


def _fits(prefix: str, group: ModuleTensors, modules: BaseModules) -> bool:
    module = modules.under(prefix, group.path)
    return module is not None and _has_shape(group, module)


def _has_shape(group: ModuleTensors, module: BaseModule) -> bool:
    """Whether the factors of a module have its sizes; true for types without them."""
    a, b = group.tensors.get("lora_A.weight"), group.tensors.get("lora_B.weight")
    if a is None or b is None or module.kind != "linear" or module.in_ is None:
        return True
    return a.shape[1:] == (module.in_,) and b.shape[:1] == (module.out,)
