"""Strict parser of `adapter_config.json` for every PEFT type.

Keys and defaults are those of peft 0.21.2 (`PeftConfig` and its subclasses). Unknown keys are kept in `raw`, not
refused: PEFT ignores them, and trainers add their own. Keys that could make a loader import or run code are refused at
any depth.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from lora_contract import canonical
from lora_contract.adapter.types import TYPES
from lora_contract.errors import RegistryError
from lora_contract.remote_code import code_in

MAX_CONFIG_BYTES: Final = 8 * 1024 * 1024
MAX_RANK: Final = 65_536
MAX_ITEMS: Final = 200_000
MAX_STRING: Final = 16_384
MAX_ALPHA: Final = 3.4e38

# Types whose `r` may be 0 or absent: the rank does not determine the sizes of their tensors.
_RANK_OPTIONAL: Final = frozenset({"OFT", "SUPERTUNING", "ADAMSS"})
_ALPHA_KEYS: Final = (
    "lora_alpha",
    "alpha",
    "randlora_alpha",
    "psoft_alpha",
    "shadow_alpha",
    "delora_lambda",
    "scaling",
)
_BOOLS: Final = (
    "inference_mode",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "use_qalora",
    "ensure_weight_tying",
    "decompose_both",
    "use_effective_conv2d",
)
_CODE_KEYS: Final = frozenset({"auto_map", "_attn_implementation_internal", "custom_pipelines", "library_import_path"})


class AdapterConfig(msgspec.Struct, frozen=True):
    """A parsed config. Fields are None if the key is absent or null and has no default.

    Args:
        rank_pattern, alpha_pattern: in the file's order, in which the first matching key wins.
        target_modules: a list of names, a pattern, or None.
        modules_to_save, target_parameters: empty if absent.
        raw: the whole document.
    """

    peft_type: str
    base_model: str | None
    revision: str | None
    task_type: str | None
    peft_version: str | None
    r: int | None
    alpha: float | None
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    bias: str
    fan_in_fan_out: bool
    rank_pattern: dict[str, Any]
    alpha_pattern: dict[str, float]
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | None
    modules_to_save: list[str]
    target_parameters: list[str]
    trainable_tokens: dict[str, list[int]] | list[int] | None
    feedforward_modules: list[str] | str | None
    init_weights: bool | str | None
    init_r: int | None
    layer_replication: bool
    raw: dict[str, Any]

    @property
    def model_class(self) -> str | None:
        """The class of the trained model, which PEFT records for a config without a task. A fact, never imported."""
        return self._mapped("base_model_class")

    @property
    def library(self) -> str | None:
        """The module of that class. PEFT imports it only if it belongs to a library on its own list."""
        return self._mapped("parent_library")

    def _mapped(self, key: str) -> str | None:
        mapping = self.raw.get("auto_mapping")
        value = mapping.get(key) if isinstance(mapping, dict) else None
        return value if isinstance(value, str) else None

    def on(self, key: str) -> bool:
        """Whether an optional feature is configured: present, and not null, false or empty."""
        return bool(self.raw.get(key))


def parse_config(data: bytes) -> AdapterConfig:
    """Parse the bytes of adapter_config.json. Raises RegistryError `rejected`, naming the key."""
    document = canonical.loads_strict(data, what="adapter_config.json", max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(document, dict):
        raise _bad(f"is {_kind(document)}, expected an object")
    _refuse_code(document)
    peft_type = document.get("peft_type")
    if not isinstance(peft_type, str):
        raise _foreign(document)
    if peft_type not in TYPES:
        raise _bad(f"has the peft_type {peft_type[:40]!r}, which is not one of the {len(TYPES)} known types")
    reader = _Reader(document)
    for key in _BOOLS:
        reader.boolean(key)
    for key in document:
        if key.endswith(("dropout", "dropout_p")):
            reader.number(key, low=0.0, high=1.0)
    return AdapterConfig(
        peft_type=peft_type,
        base_model=reader.string("base_model_name_or_path"),
        revision=reader.string("revision"),
        task_type=reader.string("task_type"),
        peft_version=reader.string("peft_version"),
        r=reader.integer("r", low=0 if peft_type in _RANK_OPTIONAL else 1, high=MAX_RANK, default=8),
        alpha=reader.first_number(_ALPHA_KEYS),
        use_rslora=reader.boolean("use_rslora"),
        use_dora=reader.boolean("use_dora"),
        lora_bias=reader.boolean("lora_bias"),
        bias=reader.string("bias") or "none",
        fan_in_fan_out=reader.boolean("fan_in_fan_out"),
        rank_pattern=reader.pattern("rank_pattern", ranks=True),
        alpha_pattern=reader.pattern("alpha_pattern", ranks=False),
        target_modules=reader.names_or_pattern("target_modules"),
        exclude_modules=reader.names_or_pattern("exclude_modules"),
        layers_to_transform=reader.integers("layers_to_transform"),
        layers_pattern=reader.names("layers_pattern", single=True),
        modules_to_save=reader.names("modules_to_save") or [],
        target_parameters=reader.names("target_parameters") or [],
        trainable_tokens=reader.tokens(
            "token_indices" if peft_type == "TRAINABLE_TOKENS" else "trainable_token_indices"
        ),
        feedforward_modules=reader.names_or_pattern("feedforward_modules"),
        init_weights=reader.init("init_lora_weights" if "init_lora_weights" in document else "init_weights"),
        init_r=reader.integer("init_r", low=1, high=MAX_RANK, default=12),
        layer_replication=bool(document.get("layer_replication")),
        raw=document,
    )


class _Reader:
    """Typed access to the document. Every method raises RegistryError `rejected`, naming the key."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def string(self, key: str) -> str | None:
        value = self.document.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise _bad(f"has {key} = {_kind(value)}, expected a string")
        return _text(key, value)

    def boolean(self, key: str) -> bool:
        value = self.document.get(key)
        if value is not None and not isinstance(value, bool):
            raise _bad(f"has {key} = {_kind(value)}, expected true or false")
        return bool(value)

    def number(self, key: str, *, low: float, high: float) -> float | None:
        value = self.document.get(key)
        return None if value is None else _number(key, value, low=low, high=high)

    def first_number(self, keys: tuple[str, ...]) -> float | None:
        found = [self.number(key, low=-MAX_ALPHA, high=MAX_ALPHA) for key in keys]
        return next((value for value in found if value is not None), None)

    def integer(self, key: str, *, low: int, high: int, default: int) -> int | None:
        value = self.document.get(key)
        if value is None:
            return default if key in self.document or key == "r" else None
        return _integer(key, value, low=low, high=high)

    def pattern(self, key: str, *, ranks: bool) -> dict[str, Any]:
        value = self.document.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise _bad(f"has {key} = {_kind(value)}, expected an object of at most {MAX_ITEMS} entries")
        for name, item in value.items():
            _text(key, name)
            if ranks and self.document["peft_type"] == "ADALORA":
                if not isinstance(item, list):
                    raise _bad(f"has a value in {key} that is not a list of booleans")
                if len(item) > MAX_RANK or not all(isinstance(flag, bool) for flag in item):
                    raise _bad(f"has a list in {key} that has other items than booleans")
            elif ranks:
                _integer(f"{key}[{name[:60]!r}]", item, low=1, high=MAX_RANK)
            else:
                _number(f"{key}[{name[:60]!r}]", item, low=-MAX_ALPHA, high=MAX_ALPHA)
        return value

    def names(self, key: str, *, single: bool = False) -> list[str] | None:
        value = self.document.get(key)
        if single and isinstance(value, str):
            value = [value] if value else []
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise _bad(f"has {key} = {_kind(value)}, expected a list of names")
        if not all(isinstance(item, str) and item for item in value):
            raise _bad(f"has an item in {key} that is not a name, or is empty")
        return [_text(key, item) for item in value]

    def names_or_pattern(self, key: str) -> list[str] | str | None:
        value = self.document.get(key)
        return _text(key, value) if isinstance(value, str) else self.names(key)

    def integers(self, key: str) -> list[int] | int | None:
        value = self.document.get(key)
        if value is None:
            return None
        if isinstance(value, list) and len(value) <= MAX_ITEMS:
            return [_integer(key, item, low=0, high=1 << 31) for item in value]
        return _integer(key, value, low=0, high=1 << 31)

    def tokens(self, key: str) -> dict[str, list[int]] | list[int] | None:
        value = self.document.get(key)
        if value is None:
            return None
        groups = value if isinstance(value, dict) else {"": value}
        for items in groups.values():
            if not isinstance(items, list) or len(items) > 1 << 20:
                raise _bad(f"has {key} = {_kind(items)}, expected a list of token ids")
            for item in items:
                _integer(key, item, low=0, high=1 << 31)
        return groups if isinstance(value, dict) else groups[""]

    def init(self, key: str) -> bool | str | None:
        value = self.document.get(key)
        if value is not None and not isinstance(value, bool | str):
            raise _bad(f"has {key} = {_kind(value)}, expected true, false or a name")
        return value


def _refuse_code(document: Any) -> None:
    """Refuse keys that make a loader import or run code, at any depth."""
    if (found := code_in(document, _adapter_code)) is not None:
        key, why = found
        raise RegistryError(
            "rejected", f"adapter_config.json has the key {key!r}: {why}.", hint=f"Remove {key!r} and push again."
        )


def _adapter_code(key: str, value: Any) -> str | None:
    """Keys that PEFT imports modules for, or that only a base's config has."""
    if key in _CODE_KEYS:
        return "it lets a loader run code that comes with the files"
    if key == "megatron_core" and value != "megatron.core":
        return f"PEFT imports the module it names, {str(value)[:60]!r}; expected 'megatron.core'"
    return None


def _foreign(document: dict[str, Any]) -> RegistryError:
    """The error for a config without peft_type, which says whose it is."""
    owner = None
    if "lora_parameters" in document or "fine_tune_type" in document:
        owner = f"mlx-lm (fine_tune_type {str(document.get('fine_tune_type'))[:40]!r})"
    elif isinstance(document.get("config"), dict) and "model_class" in document:
        owner = f"AdapterHub's library (of a {str(document.get('model_class'))[:60]})"
    if owner is None:
        return _bad("has no peft_type")
    return RegistryError(
        "rejected",
        f"adapter_config.json is a config of {owner}, not of PEFT: it has no peft_type.",
        hint="Import it: `lora-reg import FOLDER --base NAME` converts it to PEFT's format.",
    )


def _bad(why: str) -> RegistryError:
    return RegistryError("rejected", f"adapter_config.json {why}.", hint="Correct adapter_config.json and push again.")


def _text(key: str, value: str) -> str:
    if len(value) > MAX_STRING or any(character < " " or character == "\x7f" for character in value):
        raise _bad(f"has a string in {key} with more than {MAX_STRING} characters or with a control character")
    return value


def _integer(key: str, value: Any, *, low: int, high: int) -> int:
    if type(value) is not int:
        raise _bad(f"has {key} = {_kind(value)}, expected an integer")
    if not low <= value <= high:
        raise _bad(f"has {key} = {str(value)[:40]}, expected {low} to {high}")
    return value


def _number(key: str, value: Any, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(f"has {key} = {_kind(value)}, expected a number")
    if (isinstance(value, int) and abs(value) > 1 << 127) or not math.isfinite(value) or not low <= value <= high:
        raise _bad(f"has {key} = {str(value)[:40]}, expected a finite number from {low:g} to {high:g}")
    return float(value)


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return str(value)[:40]
    return "a string" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
