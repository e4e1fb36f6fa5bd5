"""Compatibility of an adapter with inference servers, from its config and facts alone. Pure.

From the servers' sources: vLLM 0.33 (lora/peft_helper.py, config/lora.py), SGLang 0.5.23 (srt/lora), LoRAX and TGI
(adapters/lora.py), llama.cpp (convert_lora_to_gguf.py). A server refuses an incompatible adapter, or, which is worse,
loads it and computes something else: LoRAX and TGI use the config's alpha and rank for all modules, SGLang and
llama.cpp divide alpha by the rank even for rsLoRA, and tensors other than lora_A and lora_B are ignored.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.facts import AdapterFacts

Runtime = Literal["vllm", "sglang", "lorax", "tgi", "llama.cpp"]
Serving = Literal["serves", "refuses", "wrong"]

RUNTIMES: Final[tuple[Runtime, ...]] = ("vllm", "sglang", "lorax", "tgi", "llama.cpp")
RANK_BUCKETS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""

_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
PLAIN: Final = "`lora-reg resize REF --plain --uniform-rank --to NAME` converts it to plain LoRA with the same product."
MERGE: Final = "`lora-reg merge REF --to NAME` merges it into a checkpoint, which every server accepts."

# feature -> (runtimes that refuse it, runtimes that load it and compute something else)
_RULES: Final[dict[str, tuple[set[str], set[str]]]] = {
    "type": ({*RUNTIMES}, set()),
    "dora": ({"vllm", "sglang", "llama.cpp"}, {"lorax", "tgi"}),
    "bias": ({"vllm", "llama.cpp"}, {"sglang", "lorax", "tgi"}),
    "saved": ({"vllm", "llama.cpp"}, {"sglang", "lorax", "tgi"}),
    "tokens": ({"vllm", "sglang", "llama.cpp"}, {"lorax", "tgi"}),
    "embedding": (set(), {"lorax", "tgi"}),
    "rslora": (set(), {"sglang", "llama.cpp"}),
    "patterns": (set(), {"sglang", "lorax", "tgi", "llama.cpp"}),
    "init": ({"vllm"}, set()),
    "variant": ({"vllm"}, {"sglang", "lorax", "tgi", "llama.cpp"}),
    "rank": ({"vllm"}, set()),
}
_CONVERTED: Final = frozenset({"rslora", "patterns", "init"})


class Serveability(msgspec.Struct, frozen=True):
    """Whether one server can serve an adapter.

    Args:
        state: `wrong`: the server loads the adapter and computes something else.
        problems: sentences.
        conversion: the command that makes the adapter servable; None if it is.
        max_lora_rank: for vLLM's option; None if the rank is unknown or above every accepted value.
    """

    state: Serving
    problems: list[str] = []
    conversion: str | None = None
    max_lora_rank: int | None = None


def serveability(config: AdapterConfig, facts: AdapterFacts, *, adds_tokens: bool = False) -> dict[str, Serveability]:
    """Check an adapter against every server. adds_tokens: the adapter's tokenizer has tokens that the base's lacks."""
    features = _features(config, facts, adds_tokens=adds_tokens)
    found: dict[str, Serveability] = {}
    for runtime in RUNTIMES:
        refused = [name for name in features if runtime in _RULES[name][0]]
        wrong = [name for name in features if runtime in _RULES[name][1]]
        state: Serving = "refuses" if refused else "wrong" if wrong else "serves"
        incompatible = [*refused, *wrong]
        found[runtime] = Serveability(
            state,
            [features[name] for name in incompatible],
            None if not incompatible else PLAIN if _CONVERTED.issuperset(incompatible) else MERGE,
            _bucket(facts.max_rank) if runtime == "vllm" else None,
        )
    return found


def _features(config: AdapterConfig, facts: AdapterFacts, *, adds_tokens: bool) -> dict[str, str]:
    """Sentences on the features of the adapter that some server does not support, by feature."""
    if facts.peft_type != "LORA":
        return {"type": f"Its type is {facts.peft_type}; servers support LORA only."}
    init = config.init_weights
    sentences = {
        "dora": config.use_dora and "It uses DoRA, whose magnitudes are not part of the product.",
        "bias": (config.bias != "none" or config.lora_bias or facts.has_biases) and "It has trained biases.",
        "saved": bool(facts.modules_to_save or facts.saved_tensors)
        and f"It contains fully trained modules: {', '.join(facts.modules_to_save[:4]) or 'tensors of the base'}.",
        "tokens": bool(config.trainable_tokens or adds_tokens) and "It adds or trains tokens.",
        "embedding": "embed_tokens" in facts.targets and "It adapts the embedding.",
        "rslora": config.use_rslora and "It uses rsLoRA: its scale is alpha divided by the square root of the rank.",
        "patterns": bool(config.rank_pattern or config.alpha_pattern) and "Its rank or alpha differs between modules.",
        "init": isinstance(init, str) and init not in _INITS and f"Its initialization {init!r} modified the base.",
        "variant": any(
            config.on(key)
            for key in ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora", "arrow_config")
        )
        and "It is a LoRA variant whose update is not a plain product in every module.",
        "rank": (facts.max_rank or 0) > RANK_BUCKETS[-1] and f"Its rank {facts.max_rank} is above {RANK_BUCKETS[-1]}.",
    }
    return {name: text for name, text in sentences.items() if isinstance(text, str)}


def _bucket(rank: int | None) -> int | None:
    return next((size for size in RANK_BUCKETS if rank is not None and rank <= size), None)
