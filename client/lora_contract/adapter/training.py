"""Facts from the trainer's files, `trainer_state.json` and `training_args.json`, as transformers and TRL write them.

They are informative only: their content is not verified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from lora_contract import canonical
from lora_contract.errors import RegistryError

MAX_BYTES: Final = 8 * 1024 * 1024
STATE: Final = "trainer_state.json"
ARGUMENTS: Final = "training_args.json"

_STATE_KEYS: Final = {
    "global_step": "steps", "epoch": "epochs", "best_metric": "best_metric", "train_batch_size": "batch_size",
    "total_flos": "flos",
}  # fmt: skip
_ARGUMENT_KEYS: Final = (
    "learning_rate", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "optim",
    "warmup_ratio", "weight_decay", "dataset_name",
)  # fmt: skip


def training_facts(sizes: Mapping[str, int], read: Callable[[str, int, int], bytes]) -> dict[str, int | float | str]:
    """Numbers and short texts by short names; empty if the files are missing or unreadable."""
    state, arguments = (_document(name, sizes, read) for name in (STATE, ARGUMENTS))
    found: dict[str, Any] = {short: state.get(key) for key, short in _STATE_KEYS.items()}
    found |= {key: arguments.get(key) for key in _ARGUMENT_KEYS}
    log = state.get("log_history")
    history = [entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else []
    for key in ("loss", "eval_loss"):
        found[f"last_{key}"] = next((entry[key] for entry in reversed(history) if key in entry), None)
    return {key: value for key, value in found.items() if _plain(value)}


def _document(name: str, sizes: Mapping[str, int], read: Callable[[str, int, int], bytes]) -> dict[str, Any]:
    size = sizes.get(name)
    if size is None or size > MAX_BYTES:
        return {}
    try:
        document = canonical.loads_strict(read(name, 0, size), what=name, max_bytes=MAX_BYTES)
    except RegistryError:
        return {}
    return document if isinstance(document, dict) else {}


def _plain(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    return (isinstance(value, int | float) and math.isfinite(value)) or (isinstance(value, str) and len(value) <= 200)
