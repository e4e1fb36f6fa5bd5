"""Tensors of LoRA modules, by the module's kind and the variants that the config enables."""

from __future__ import annotations

from collections.abc import Iterable

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.slots import Slot

# State of training methods that does not contribute to the update, by the option that adds it.
TRAINING_ONLY = {
    "velora_config": ("lora_velora_embed",),
    "monteclora_config": (
        "lora_monteclora_sampler.expert_weights",
        "lora_monteclora_sampler.expert_weights_prior",
        "lora_monteclora_sampler.gaussian_var_prior",
        "lora_monteclora_sampler.std_prior",
    ),
}

SUFFIXES = (
    *(suffix for suffixes in TRAINING_ONLY.values() for suffix in suffixes),
    "token_adapter.trainable_tokens_delta",
    "lora_magnitude_vector.weight",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_diag",
    "lora_A",
    "lora_B",
)

# Suffixes that identify an embedding.
_EMBEDDING = frozenset({"lora_embedding_A", "lora_embedding_B"})

# Initializations that modify the base before training: A and B alone do not determine the update.
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def is_embedding(suffixes: Iterable[str]) -> bool:
    return not _EMBEDDING.isdisjoint(suffixes)


def slots(config: AdapterConfig, kind: str) -> tuple[Slot, ...]:
    """The tensors of a module of this kind. Ranks of experts are multiples of their number, checked separately."""
    pair: tuple[Slot, ...]
    if kind == "embedding":
        pair = (Slot("lora_embedding_A", (("r", "out"),)), Slot("lora_embedding_B", (("in", "r"),)))
        magnitude = ("in",)
    elif kind == "conv":
        pair = (
            Slot("lora_A.weight", (("r", "*", "*"), ("r", "*", "*", "*"), ("r", "*", "*", "*", "*"))),
            Slot("lora_B.weight", (("out", "*", 1), ("out", "*", 1, 1), ("out", "*", 1, 1, 1))),
        )
        magnitude = ("*",)
    elif kind == "experts":
        pair = (Slot("lora_A.weight", (("*", "*"),)), Slot("lora_B.weight", (("*", "*"),)))
        magnitude = ("*",)
    elif kind == "mha":
        pair = (Slot("lora_A", (("r", "in"),), required=False), Slot("lora_B", (("out", "r"),), required=False))
        pair += (Slot("lora_A.weight", (("r", "in"),), False), Slot("lora_B.weight", (("out", "r"),), False))
        magnitude = ("out",)
    elif config.on("use_bdlora") or config.on("use_qalora"):
        pair = (Slot("lora_A.weight", (("r", "*"),)), Slot("lora_B.weight", (("out", "*"),)))
        magnitude = ("out",)
    else:
        pair = (Slot("lora_A.weight", (("r", "in"),)), Slot("lora_B.weight", (("out", "r"),)))
        magnitude = ("out",)
    extra: list[Slot] = []
    if config.use_dora:
        shapes = (magnitude, (1, "out", 1), (1, "out", 1, 1), (1, "out", 1, 1, 1))
        extra.append(Slot("lora_magnitude_vector", shapes, required=False))
        extra.append(Slot("lora_magnitude_vector.weight", shapes, required=False))
    if config.lora_bias:
        extra.append(Slot("lora_B.bias", (("out",),), required=kind != "embedding"))
    if config.on("kasa_config"):
        extra.append(Slot("lora_diag", (("r",),)))
    for option, suffixes in TRAINING_ONLY.items():
        if config.on(option):
            extra += [Slot(suffix, required=False) for suffix in suffixes]
    return (*pair, *extra)


def changes_base(config: AdapterConfig) -> str | None:
    """The setting of the config that modified the base in training; None if there is none."""
    init = config.raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        return f"init_lora_weights = {init!r}"
    # corda_config and lora_ga_config stay in the config of an adapter that was converted to plain LoRA on saving; PEFT
    # looks at them for their own init alone.
    return "kasa_config" if config.on("kasa_config") else None
