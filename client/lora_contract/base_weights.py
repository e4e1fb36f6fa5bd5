"""Bases without weights that can be used: what lies there instead, and how to convert it. Nothing of it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from lora_contract.findings import Finding

_LOAD: Final = "AutoModelForCausalLM.from_pretrained(folder{option}).save_pretrained(folder + '-safetensors')"
_CONVERT: Final = (
    'Convert it, on a machine where you trust the file: python -c "from transformers import AutoModelForCausalLM; '
    f"folder = 'DIR'; {_LOAD}\", copy the tokenizer's files beside the result, and add that folder."
)
_OLD: Final = " It takes transformers 4: 5 does not read this format."
_PICKLED: Final = "which are pickles and are never opened; a base consists of config.json and safetensors files"
_OTHER: Final = (
    "which are not read here; a base consists of config.json and safetensors files as transformers saves them"
)

_KINDS: Final[tuple[tuple[tuple[str, ...], str, str], ...]] = (
    (("pytorch_model*.bin",), _PICKLED, _CONVERT.format(option="")),
    (
        ("consolidated*.pth", "original/", "*.pth", "*.pt"),
        _PICKLED,
        (
            "Convert them with the script of transformers for this model, such as "
            "`python -m transformers.models.llama.convert_llama_weights_to_hf`, and add the folder that it writes."
        ),
    ),
    (
        ("*model.*.safetensors",),
        "which are a variant, loaded only on request; a base has the weights that are loaded without one",
        (
            "Save it without the variant: `DiffusionPipeline.from_pretrained(DIR, variant=V).save_pretrained(OTHER)`; "
            "add that folder."
        ),
    ),
    (
        ("consolidated*.safetensors", "*.safetensors"),
        _OTHER,
        "Add the folder that holds model.safetensors, or its shards and model.safetensors.index.json.",
    ),
    (("tf_model*.h5", "*.h5"), _OTHER, _CONVERT.format(option=", from_tf=True") + _OLD),
    (("flax_model*.msgpack", "*.msgpack"), _OTHER, _CONVERT.format(option=", from_flax=True") + _OLD),
    (
        ("*.gguf",),
        _OTHER,
        "Add the checkpoint from which the GGUF file was made; a GGUF file is for inference and holds rounded weights.",
    ),
    (("rust_model.ot", "*.bin", "*.ckpt"), _PICKLED, _CONVERT.format(option="")),
    (("onnx/", "*.onnx", "openvino/", "coreml/"), _OTHER, "Add the checkpoint from which they were exported."),
)
"""Names of weights by what they are, the usual first, and how to convert them."""


def unusable_weights(left_out: Iterable[str]) -> Finding | None:
    """Say what stands in place of the weights, by the names that were left out of a base; None if nothing does."""
    names = sorted(left_out)
    for patterns, why, hint in _KINDS:
        found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if found:
            named = found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"
            return Finding(
                code="file-missing",
                severity="error",
                message=f"The only weights of the base are {named}, {why}.",
                file=found[0],
                found=found[0],
                expected="model.safetensors",
                hint=hint,
            )
    return None
