"""Tensor names that a trainer spoiled: parts that wrappers of the model left in them, as a loader would not find them.

The adapter is then checked under the names that PEFT writes, so that the spoiled ones are one finding, and every other
fault is found too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from typing import Final

import msgspec

from lora_contract.adapter import lora
from lora_contract.adapter.names import PREFIX
from lora_contract.adapter.report import WEIGHTS, CheckReport
from lora_contract.adapter.types import TYPES
from lora_contract.modules import BaseModules
from lora_contract.tensors import Header

WRAPPERS: Final = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
    "module": "data parallel training",
}
"""Parts of names by what leaves them there."""
_FIRST: Final = "module"
"""A common name of modules: taken for a wrapper only where the model begins."""


def restore_names(header: Header, peft_type: str, modules: BaseModules, report: CheckReport) -> Header:
    """Return the header with the names that PEFT writes, and report the spoiled ones as one finding."""
    present = {part for part in WRAPPERS if any(f"{part}." in tensor.name for tensor in header.tensors)}
    if present:  # what the base's own modules are called is no wrapper
        present -= {part for name in modules.parameters for part in name.split(".")}
    suffixes = frozenset(_suffixes(peft_type))
    removed: Counter[str] = Counter()
    names = [_plain(tensor.name, present, suffixes, removed) for tensor in header.tensors]
    if not removed or len(set(names)) < len(names):
        return header
    spoiled = [(old.name, name) for old, name in zip(header.tensors, names, strict=True) if name != old.name]
    first, plain = spoiled[0]
    parts = [part for part, _ in removed.most_common()]
    causes = list(dict.fromkeys(WRAPPERS.get(part, "the adapter's name in memory") for part in parts))
    report.add(
        "unknown-tensor",
        f"{len(spoiled)} tensors have names with {' and '.join(repr(part + '.') for part in parts)}, left there by "
        f"{' and '.join(causes)}; loaders would silently skip them. The first is {first}.",
        where=first,
        found=first,
        expected=plain,
        hint="Save again from the unwrapped model, or rename the tensors: " + _command(parts),
    )
    renamed = (msgspec.structs.replace(old, name=name) for old, name in zip(header.tensors, names, strict=True))
    return msgspec.structs.replace(header, tensors=tuple(renamed))


def _suffixes(peft_type: str) -> tuple[str, ...]:
    return lora.SUFFIXES if peft_type == "LORA" else tuple(slot.suffix for slot in TYPES[peft_type].slots)


def _plain(name: str, wrappers: Set[str], suffixes: Set[str], removed: Counter[str]) -> str:
    parts = name.split(".")
    if wrappers:
        for place in (0, PREFIX.count(".")):
            if _FIRST in wrappers and parts[place : place + 1] == [_FIRST]:
                del parts[place]
                removed[_FIRST] += 1
        for part in wrappers - {_FIRST}:
            if part in parts:
                removed[part] += 1
            parts = [other for other in parts if other != part]
    # The adapter's own name, which PEFT has in memory (`lora_A.default.weight`) and does not save.
    for place in range(len(parts) - 1, max(0, len(parts) - 4), -1):
        head, rest = parts[place - 1], ".".join(parts[place + 1 :])
        known = f"{head}.{rest}" in suffixes if rest else head in suffixes and parts[place] == "default"
        if known or (head == "modules_to_save" and parts[place] == "default"):
            removed[parts[place]] += 1
            del parts[place]
            break
    # The same object if nothing is removed: a second copy of all names takes as much memory as they do.
    return name if len(parts) == name.count(".") + 1 else ".".join(parts)


def _command(parts: list[str]) -> str:
    calls = ""
    for part in parts:
        if part == _FIRST:
            calls += f".removeprefix('{part}.').replace('{PREFIX}{part}.', '{PREFIX}')"
        elif part in WRAPPERS:
            calls += f".replace('{part}.', '')"
        else:
            calls += f".replace('.{part}.', '.').removesuffix('.{part}')"
    return (
        'python -c "from safetensors.torch import load_file, save_file; '
        f"p = '{WEIGHTS}'; save_file({{k{calls}: v for k, v in load_file(p).items()}}, p, {{'format': 'pt'}})\""
    )
