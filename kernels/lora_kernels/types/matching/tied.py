"""A base whose output layer is its input embedding: what an adapter changes of it, and what of that both layers share.

An adapter is trained on one of the two layers, or on both apart, although they are one tensor; only where PEFT ties the
adapter's own tensors too (`ensure_weight_tying`, trainable tokens) is the update one of both. So the head counts as a
tensor of its own while adapters are matched, and the result is untied if its updates differ from the embedding's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from lora_contract.base import BaseFingerprint, BaseTensor
from lora_contract.modules import BaseModule, BaseModules, input_embedding

# Names of the head by the embedding's, in models that have no other layers tied to them.
_HEADS: Final = {"embed_tokens": "lm_head", "wte": "lm_head", "word_embeddings": "lm_head", "embed_in": "embed_out"}
_HEAD_NAMES: Final = frozenset({"lm_head", "embed_out", "output", "output_projection"})
# Where the head's name carries the prefix that the embedding's has.
_WRAPPED: Final = "language_model.model."
_GENERATING: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_HEADLESS: Final = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True)
class Tie:
    """head: the output layer's weight, of the base's files or, if they hold none, the embedding's bytes under its
    name; None if it is not known what the model calls it. stored: the base's files hold it."""

    embedding: BaseModule
    weight: BaseTensor
    head: BaseTensor | None
    stored: bool

    def is_head(self, module: BaseModule) -> bool:
        return is_head(module, self.embedding)

    def concerns(self, module: BaseModule) -> bool:
        """Whether the module is one of those that share a weight."""
        return self.is_head(module) or (module.weight is not None and module.weight.name == self.weight.name)


def tie_of(base: BaseFingerprint, modules: BaseModules) -> Tie | None:
    """None for a base whose layers share no weight, or that has no output layer."""
    embedding = input_embedding(modules.modules)
    if embedding is None or embedding.weight is None or not _tied(base):
        return None
    generating = base.architecture.endswith(_GENERATING)
    if base.architecture.endswith(_HEADLESS) and not generating:
        return None
    stored = [
        module.weight
        for _, module in sorted(modules.modules.items())
        if is_head(module, embedding) and module.weight is not None and module.weight.name != embedding.weight.name
    ]
    if stored:
        return Tie(embedding, embedding.weight, stored[0] if len(stored) == 1 else None, stored=True)
    name = _HEADS.get(embedding.path.rpartition(".")[2])
    if name is None or not generating:
        return Tie(embedding, embedding.weight, None, stored=False)
    prefix = "language_model." if embedding.path.startswith(_WRAPPED) else ""
    head = msgspec.structs.replace(embedding.weight, name=f"{prefix}{name}.weight")
    return Tie(embedding, embedding.weight, head, stored=False)


def is_head(module: BaseModule, embedding: BaseModule) -> bool:
    """Whether a module is the output layer, of an embedding's size."""
    named = module.path.rpartition(".")[2] in _HEAD_NAMES and module.path != embedding.path
    return named and (module.out, module.in_) == (embedding.out, embedding.in_)


def untied_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the model once its output layer has a weight of its own."""
    result = {**config, "tie_word_embeddings": False}
    nested = config.get("text_config")
    if isinstance(nested, dict):
        result["text_config"] = {**nested, "tie_word_embeddings": False}
    return result


def _tied(base: BaseFingerprint) -> bool:
    """A checkpoint may hold an output layer that its config ties away again when it is loaded."""
    nested = base.config.get("text_config")
    configs = (base.config, nested if isinstance(nested, dict) else {})
    return base.tied or any(part.get("tie_word_embeddings") is True for part in configs)
