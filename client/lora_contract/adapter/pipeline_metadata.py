"""What `load_lora_weights` of diffusers computes from a file, against what its adapter_config.json says.

diffusers reads ranks and scales from the header of the file, and without an entry there takes 1 as the scale. The two
must agree: a merge follows adapter_config.json.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from lora_contract import canonical
from lora_contract.adapter.config import AdapterConfig, parse_config
from lora_contract.adapter.parts import METADATA, Part
from lora_contract.adapter.report import WEIGHTS, CheckReport
from lora_contract.adapter.scaling import scales
from lora_contract.adapter.sorting import modules_in
from lora_contract.errors import RegistryError

STATED: Final = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "lora_dropout", "bias"),
    *("use_dora", "use_rslora"),
)
"""Keys of PEFT's config that we write to the header."""
_MAX_BYTES: Final = 8 * 1024 * 1024


def check_metadata(parts: Collection[Part], report: CheckReport) -> None:
    """Report the first module of each part that diffusers would scale in another way than a merge does."""
    for part in parts:
        try:
            stated = _stated(part)
        except RegistryError as error:
            report.add_error("bad-config", error, file=WEIGHTS, where=METADATA)
            return
        ours = scales(part.config)
        theirs = None if stated is None else scales(stated)
        for group in modules_in(part.config.peft_type, part.header):
            wanted = ours(group.path).scale
            found = 1.0 if theirs is None else theirs(group.path).scale
            if found != wanted or (stated is not None and stated.use_dora != part.config.use_dora):
                report.add(
                    "metadata-mismatch",
                    f"adapter_config.json gives {part.component}.{group.path} the scale {wanted:g}; diffusers, which "
                    f"reads {METADATA} in the header of {WEIGHTS}, would use {found:g}.",
                    where=f"{part.component}.{group.path}",
                    found=f"{found:g}",
                    expected=f"{wanted:g}",
                    hint="Import the file that diffusers or kohya's scripts wrote: `lora-reg import FILE --base NAME`.",
                )
                break


def _stated(part: Part) -> AdapterConfig | None:
    """The config of a part in the header of the file; None if there is none."""
    text = part.header.metadata.get(METADATA)
    if text is None:
        return None
    document = canonical.loads_strict(text.encode(), what=METADATA, max_bytes=_MAX_BYTES)
    own = part_of(document, part.component)
    return parse_config(canonical.dumps({**own, "peft_type": "LORA"})) if own else None


def part_of(document: Any, component: str) -> dict[str, Any]:
    """The entries of one part, without the component in front; empty if there are none."""
    if not isinstance(document, dict):
        return {}
    prefix = f"{component}."
    return {key[len(prefix) :]: value for key, value in document.items() if key.startswith(prefix)}
