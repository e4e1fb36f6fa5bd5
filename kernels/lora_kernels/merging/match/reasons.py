"""Types without a merged form here, and why. Every type is either here or has a matcher.

What is refused is still stored, served and validated: only a merge is impossible, or not exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lora_contract.errors import RegistryError

_TOKENS = "its virtual tokens are input beside the text, no change of any weight"
_ROUTED = "how much of it acts depends on the input"

# The rest of the sentence "Merging ... is not possible: ...".
REASONS: Final[Mapping[str, str]] = {
    "PROMPT_TUNING": _TOKENS,
    "P_TUNING": _TOKENS,
    "CPT": _TOKENS,
    "MULTITASK_PROMPT_TUNING": _TOKENS,
    "PREFIX_TUNING": "its keys and values stand before those of the text in every layer, no change of any weight",
    "CARTRIDGE": "its keys and values stand before those of the text in every layer, no change of any weight",
    "ADAPTION_PROMPT": "its prompt is attended to in every layer beside the text, no change of any weight",
    "POLY": f"{_ROUTED}: a router mixes its skills by the task",
    "XLORA": f"{_ROUTED}: a classifier weighs its experts for every token",
    "SHADOW": "it runs a second, smaller model beside the layers of the base",
    "PSOFT": "it turns the base in the frame of its largest singular vectors, whose signs no file fixes: the "
    "decomposition of another library gives another model",
    "OSF": "it replaces what is left of the base behind its largest singular values, which takes a full decomposition "
    "of every weight and depends on the library where singular values are close",
    "FROD": "half of its factors are not in the file: PEFT computes them from the base when it loads the adapter, "
    "through an inverse that loses digits",
    "ADAMSS": "its rows are grouped by a clustering of the base (scikit-learn's k-means) that is not in the file",
    "LILY": "how much of it acts depends on the input: a router mixes its experts for every token",
}


def not_possible(peft_type: str) -> RegistryError:
    reason = REASONS.get(peft_type, "there is no exact form of it yet that needs nothing but the files")
    return RegistryError(
        "unsupported",
        f"Merging {peft_type} is not possible: {reason}. The adapter can still be stored, served and validated.",
        hint="Serve the adapter unmerged, with PEFT or an inference server that knows its type.",
        type=peft_type,
    )
