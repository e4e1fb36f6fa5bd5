"""Names of modules as an adapter has them: those of the base's files, or today's, which transformers gives them."""

from __future__ import annotations

from collections.abc import Callable

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.placed import Structure
from lora_contract.adapter.report import CheckReport
from lora_contract.adapter.sorting import modules_in
from lora_contract.base import BaseFingerprint
from lora_contract.modules import BaseModules
from lora_contract.renames import rename_table
from lora_contract.tensors import Header


def spelling(structure: Structure, modules: BaseModules) -> Callable[[str], str]:
    """A function from a path in the base's files to the adapter's path of that module."""
    renamed = (each for each in structure.groups.values() if each.module is not None and each.path != each.module.path)
    today = any(modules.naming.today(each.path) == each.path for each in renamed)
    return modules.naming.today if today else lambda path: path


def report_older_names(
    config: AdapterConfig,
    header: Header,
    base: BaseFingerprint,
    modules: BaseModules,
    targeted: Callable[[str], bool],
    report: CheckReport,
) -> None:
    """Warn of names that PEFT no longer finds in the model that today's transformers makes of the base. targeted: the
    predicate of target_modules."""
    older = [
        (group.path, today)
        for group in modules_in(config.peft_type, header)
        if (today := _today(group.path, modules)) != group.path and modules.resolve(group.path) is not None
    ]
    unread = [pair for pair in older if not _converted(*pair, config, base, targeted)]
    if not unread:
        return
    path, today = unread[0]
    one = len(unread) == 1
    report.add(
        "older-names",
        f"{len(unread)} module{' has its name' if one else 's have their names'} of an older transformers; PEFT with "
        f"transformers {rename_table().transformers} leaves {'it' if one else 'them'} out, mostly without an error. "
        f"The first is {path}, today {today}.",
        severity="warning",
        where=path,
        found=path,
        expected=today,
        hint="Serve it merged, or with the transformers that it was trained with.",
    )


def _today(path: str, modules: BaseModules) -> str:
    """What the running model has for a module: itself under today's name, or what transformers makes of it."""
    made = modules.naming.conversion(path)
    return modules.naming.today(path) if made is None else made.made[0].removesuffix(".weight")


def _converted(
    path: str, today: str, config: AdapterConfig, base: BaseFingerprint, targeted: Callable[[str], bool]
) -> bool:
    """Whether PEFT renames the tensors of a module on loading, and finds it by the config's targets."""
    known = rename_table().peft
    if config.peft_type != "LORA" or base.model_type not in known.names:
        return False
    if f"{PREFIX}{path}".endswith(today):
        return False  # PEFT takes this for a prefix that it should not have removed, and undoes it
    if ".experts." in path:
        return base.model_type in known.experts
    return targeted(today)
