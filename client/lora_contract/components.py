"""The components of a pipeline, each as a base of its own."""

from __future__ import annotations

import msgspec

from lora_contract.base import BaseFingerprint
from lora_contract.fingerprint import architecture_of, is_tied
from lora_contract.pipelines import COMPONENTS, is_pipeline


def component_names(base: BaseFingerprint) -> tuple[str, ...]:
    """The components that have weights; empty for a base that is one model."""
    return tuple(sorted(base.config[COMPONENTS])) if is_pipeline(base.config) else ()


def component(base: BaseFingerprint, name: str) -> BaseFingerprint:
    """A component: its config, and its tensors by their names in its files."""
    prefix = f"{name}."
    config = base.config[COMPONENTS][name]
    tensors = tuple(
        msgspec.structs.replace(tensor, name=tensor.name.removeprefix(prefix))
        for tensor in base.tensors
        if tensor.name.startswith(prefix)
    )
    model_type = config.get("model_type", "")
    return BaseFingerprint(
        architecture=architecture_of(config),
        model_type=model_type if isinstance(model_type, str) else "",
        config=config,
        tensors=tensors,
        files={path: digest for path, digest in base.files.items() if path.startswith(f"{name}/")},
        embedding_rows=None,
        tied=is_tied(config, (tensor.name for tensor in tensors)),
        tokenizer=None,
        chat_template=None,
    )
