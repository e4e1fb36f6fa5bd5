"""Keys of JSON files that make a loader import or fetch code: in configs of adapters, of bases, and of tokenizers.

Read from transformers 5.23 and PEFT 0.21.2. Loaders ask for exact spellings; others are refused in any case of letters,
since nobody writes them for another purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

_CODE_KEYS: Final = frozenset(
    {
        "auto_map",
        "custom_generate",
        "custom_pipelines",
        "library_import_path",
    }
)
_IMPLEMENTATIONS: Final = ("attn_implementation", "experts_implementation", "kernel_config")
"""Parts of keys that name an implementation of a layer; a name with a slash is a repository that is fetched and run."""

QUANTIZATION_METHODS: Final = frozenset(
    {
        *("aqlm", "auto-round", "awq", "bitnet", "bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
        *("compressed-tensors", "eetq", "fbgemm_fp8", "fouroversix", "fp8", "fp_quant", "gemma", "gguf", "gptq"),
        *("higgs", "hqq", "metal", "mxfp4", "mxfp8", "nvfp4", "quanto", "quark", "sinq", "spqr", "torchao", "vptq"),
        # Of inference servers.
        *("awq_marlin", "deepspeedfp", "exl2", "exl3", "gptq_marlin", "inc", "intel/auto-round", "ipex", "marlin"),
        *("mlx", "modelopt", "modelopt_fp4", "moe_wna16", "nvidia_modelopt", "ptpc_fp8", "rtn", "squeezellm"),
    }
)


Rule = Callable[[str, Any], str | None]
"""Why a key, in lower case, with a value other than null and false is refused; None if it is not."""


def code_in(document: Any, *more: Rule) -> tuple[str, str] | None:
    """Return the first key, at any depth, that lets a loader run or fetch code, and why; None if there is none.

    document: parsed JSON of bounded depth. more: rules of one kind of file.
    """
    for key, value in _entries(document):
        if value is None or value is False:
            continue
        for rule in (_reason, *more):
            if (why := rule(key.lower(), value)) is not None:
                return key, why
    return None


def _reason(key: str, value: Any) -> str | None:
    # A vocabulary may have the token `auto_map`, whose value is a number.
    if key in _CODE_KEYS and (value is True or (isinstance(value, str | list | dict) and value)):
        return "it lets a loader run code that comes with the files"
    if key == "trust_remote_code":
        return "it lets a loader run code from the Hub"
    if any(part in key for part in _IMPLEMENTATIONS) and (named := _repository(value)) is not None:
        return f"it names the repository {named[:60]!r}, which a loader fetches and runs"
    if key == "quant_method" and not (isinstance(value, str) and value in QUANTIZATION_METHODS):
        return f"its value {str(value)[:60]!r} is not a known quantization method"
    return None


def _repository(value: Any) -> str | None:
    """The first text with a slash in a value."""
    if isinstance(value, str):
        return value if "/" in value else None
    parts: Any = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return next((found for part in parts if (found := _repository(part)) is not None), None)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of all objects, the outer ones first."""
    if isinstance(value, dict):
        yield from value.items()
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        if isinstance(item, dict | list):
            yield from _entries(item)
