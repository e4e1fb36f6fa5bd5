"""The adapters whose merges are compared with the unmerged adapter: at least one of each PEFT type that merges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

ALL: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOCKS: Final = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
ATTENTION: Final = ["q_proj", "k_proj", "v_proj", "o_proj"]
NORMS: Final = ["input_layernorm", "post_attention_layernorm", "model.norm"]
# Digits, operators and a few capitals, which are frequent in the queries.
TOKENS: Final = list(range(16, 48))


@dataclass(frozen=True, slots=True)
class Trained:
    """config: name of PEFT's class. options: its fields. rate: learning rate, higher for scales, angles and the like
    than for weights. biased: on the base with biases, which types that act on biases need."""

    label: str
    type: str
    config: str
    options: dict[str, Any] = field(default_factory=dict)
    rate: float = 5e-3
    biased: bool = False


def _lora(label: str, rate: float = 5e-3, *, biased: bool = False, **options: Any) -> Trained:
    return Trained(label, "LORA", "LoraConfig", {"r": 8, "lora_alpha": 16, **options}, rate, biased)


TRAINED: Final = (
    _lora("LoRA, q and v", target_modules=["q_proj", "v_proj"]),
    _lora("LoRA, all linear", target_modules=ALL),
    _lora("rsLoRA", target_modules=ALL, use_rslora=True),
    _lora(
        "LoRA, patterns of rank and alpha",
        target_modules=ALL,
        rank_pattern={"down_proj": 4, "layers.0.self_attn.q_proj": 16},
        alpha_pattern={"o_proj": 4},
    ),
    _lora("LoRA on embedding and lm_head", target_modules=["embed_tokens", "lm_head", "v_proj"]),
    _lora("LoRA, a whole lm_head beside it", 2e-3, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"]),
    _lora("LoRA, rows of tokens", target_modules=["q_proj", "v_proj"], trainable_token_indices=TOKENS),
    _lora("LoRA, lora_bias", target_modules=ATTENTION, lora_bias=True, biased=True),
    _lora("LoRA, all biases trained", target_modules=ATTENTION, bias="all", biased=True),
    _lora("DoRA", target_modules=ALL, use_dora=True),
    Trained(
        "AdaLoRA",
        "ADALORA",
        "AdaLoraConfig",
        {"init_r": 8, "target_r": 4, "lora_alpha": 16, "total_step": 100, "target_modules": ALL},
        2e-2,
    ),
    Trained("LoHa", "LOHA", "LoHaConfig", {"r": 8, "alpha": 16, "target_modules": ALL}, 1e-2),
    Trained("LoKr", "LOKR", "LoKrConfig", {"r": 8, "alpha": 16, "target_modules": ALL}, 1e-2),
    Trained("IA3", "IA3", "IA3Config", {"target_modules": [*ALL], "feedforward_modules": ["down_proj"]}, 5e-2),
    Trained("VeRA", "VERA", "VeraConfig", {"r": 64, "target_modules": ["q_proj", "o_proj"]}, 5e-2),
    Trained(
        "VeRA, projections by a seed",
        "VERA",
        "VeraConfig",
        {"r": 64, "target_modules": ["q_proj", "o_proj"], "save_projection": False},
        5e-2,
    ),
    Trained("PVeRA", "PVERA", "PveraConfig", {"r": 64, "target_modules": ["q_proj", "o_proj"]}, 5e-2),
    Trained("OFT, Neumann series", "OFT", "OFTConfig", {"oft_block_size": 32, "target_modules": ALL}),
    Trained(
        "OFT, exact",
        "OFT",
        "OFTConfig",
        {"oft_block_size": 32, "use_cayley_neumann": False, "target_modules": ALL},
    ),
    Trained("BOFT", "BOFT", "BOFTConfig", {"boft_block_size": 8, "boft_n_butterfly_factor": 2, "target_modules": ALL}),
    Trained("HRA", "HRA", "HRAConfig", {"r": 8, "target_modules": ALL}, 1e-2),
    Trained("HiRA", "HIRA", "HiraConfig", {"r": 16, "target_modules": ALL}, 1e-2),
    Trained("MiSS", "MISS", "MissConfig", {"r": 16, "target_modules": ALL}, 1e-3),
    Trained(
        "MiSS, mini", "MISS", "MissConfig", {"r": 16, "mini_r": 8, "init_weights": "mini", "target_modules": ALL}, 1e-3
    ),
    Trained("MiSS, bat", "MISS", "MissConfig", {"r": 16, "init_weights": "bat", "target_modules": ALL}, 1e-3),
    *(
        Trained(f"RoAd, variant {n}", "ROAD", "RoadConfig", {"variant": f"road_{n}", "target_modules": ALL}, 2e-2)
        for n in (1, 2, 4)
    ),
    Trained("DeLoRA", "DELORA", "DeloraConfig", {"r": 8, "delora_lambda": 4, "target_modules": ALL}, 1e-2),
    Trained("GraLoRA", "GRALORA", "GraloraConfig", {"r": 8, "alpha": 16, "gralora_k": 2, "target_modules": ALL}),
    Trained(
        "GraLoRA, hybrid",
        "GRALORA",
        "GraloraConfig",
        {"r": 8, "alpha": 16, "gralora_k": 2, "hybrid_r": 4, "target_modules": ALL},
    ),
    Trained("C3A", "C3A", "C3AConfig", {"block_size": 32, "target_modules": ALL}, 1e-1),
    Trained("FourierFT", "FOURIERFT", "FourierFTConfig", {"n_frequency": 1000, "target_modules": ALL}, 5e-2),
    Trained("WaveFT", "WAVEFT", "WaveFTConfig", {"n_frequency": 1000, "target_modules": ALL}),
    Trained("SHiRA", "SHIRA", "ShiraConfig", {"r": 8, "random_seed": 4, "target_modules": ALL}, 1e-2),
    Trained("Super-Tuning", "SUPERTUNING", "SupertuningConfig", {"sparsity": 0.9, "target_modules": ALL}, 1e-2),
    Trained(
        "Super-Tuning, with LoRA",
        "SUPERTUNING",
        "SupertuningConfig",
        {"sparsity": 0.9, "r": 8, "target_modules": ALL},
    ),
    Trained("RandLoRA", "RANDLORA", "RandLoraConfig", {"r": 16, "randlora_alpha": 320, "target_modules": ALL}, 1e-2),
    Trained(
        "VB-LoRA",
        "VBLORA",
        "VBLoRAConfig",
        {"r": 8, "num_vectors": 64, "vector_length": 32, "target_modules": ALL},
        2e-2,
    ),
    Trained(
        "Uni-LoRA",
        "UNILORA",
        "UniLoraConfig",
        {"r": 8, "theta_d_length": 2048, "save_indices": True, "target_modules": ALL},
        2e-2,
    ),
    Trained(
        "TinyLoRA", "TINYLORA", "TinyLoraConfig", {"r": 2, "u": 32, "weight_tying": 1.0, "target_modules": ALL}, 1e-1
    ),
    Trained("DEFT", "DEFT", "DeftConfig", {"r": 8, "target_modules": ALL}),
    Trained("DEFT, para", "DEFT", "DeftConfig", {"r": 8, "para": True, "target_modules": ALL}),
    Trained("PEANuT", "PEANUT", "PeanutConfig", {"r": 8, "depth": 1, "act_fn": "tanh", "target_modules": ALL}),
    Trained(
        "GLoRA",
        "GLORA",
        "GloraConfig",
        {"r": 8, "config_A_B": "lora", "config_C": "none", "config_D_E": "vector", "target_modules": ATTENTION},
        biased=True,
    ),
    Trained("LN tuning", "LN_TUNING", "LNTuningConfig", {"target_modules": NORMS}, 2e-2),
    Trained(
        "trainable tokens",
        "TRAINABLE_TOKENS",
        "TrainableTokensConfig",
        {"token_indices": TOKENS, "target_modules": ["embed_tokens"]},
        2e-2,
    ),
    Trained("BEFT", "BEFT", "BeftConfig", {"target_modules": ATTENTION}, 5e-2, biased=True),
)
