"""Rebuild everything in this folder: texts, tokenizer, base model, adapters, broken adapter, losses.

    python -m examples.tiny.train [--out DIR]

Run it from the root of the repository. It needs the `dev` extra, no network and a few minutes on two cores. The same
machine and library versions give the same bytes; another processor may differ in the last bits of the weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from examples.tiny.evaluate import PROTOCOL, held_out_loss, load, quiet_libraries, read_records
from examples.tiny.languages import LANGUAGES, stream

os.environ["HF_HUB_OFFLINE"] = "1"

BASE_ID = "lora-reg-examples/tiny-llama"
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 768
WINDOW = 256
BATCH = 16
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Share of the base's training records that is in the house variant.
BASE_HOUSE_SHARE = 0.02
HELD_OUT_BYTES = 20_000
# domain -> (languages, share of the house variant)
DOMAINS: dict[str, tuple[list[str], float]] = {
    "plain": (list(LANGUAGES), 0.0),
    "queries": (["queries"], 1.0),
    "logs": (["logs"], 1.0),
}
OVERWRITTEN_LAYER = 2

log = logging.getLogger("examples.tiny")


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """How one adapter is trained: `domain` names its texts, `lora` the fields of a PEFT LoraConfig."""

    domain: str
    steps: int
    learning_rate: float
    lora: dict[str, Any] = field(default_factory=dict)


ADAPTERS = {
    "queries-v1": AdapterRecipe(
        domain="queries",
        steps=80,
        learning_rate=5e-3,
        lora={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    ),
    "queries-v2": AdapterRecipe(
        domain="queries",
        steps=160,
        learning_rate=5e-3,
        lora={"r": 8, "lora_alpha": 16, "target_modules": ALL_LINEAR},
    ),
    # A typical regression: the recipe of v2 with a much too high learning rate.
    "queries-v3": AdapterRecipe(
        domain="queries",
        steps=40,
        learning_rate=0.3,
        lora={"r": 8, "lora_alpha": 16, "target_modules": ALL_LINEAR},
    ),
    "logs": AdapterRecipe(
        domain="logs",
        steps=120,
        learning_rate=5e-3,
        lora={
            "r": 8,
            "lora_alpha": 8,
            "use_rslora": True,
            "target_modules": ALL_LINEAR,
            "rank_pattern": {"down_proj": 4, "layers.0.self_attn.q_proj": 16},
            "alpha_pattern": {"o_proj": 4},
        },
    ),
}


def write_data(out: Path) -> dict[str, list[str]]:
    """Write the held-out records of every domain under `out` and return them, by domain."""
    held_out = {}
    for domain, (languages, house) in DOMAINS.items():
        texts: dict[str, None] = {}
        for text in stream(languages, house=house, seed="held-out"):
            texts[text] = None
            if sum(len(each) + len('{"text": ""}\n') for each in texts) >= HELD_OUT_BYTES:
                break
        held_out[domain] = list(texts)
        path = out / "data" / f"{domain}_eval.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return held_out


def write_tokenizer(out: Path, texts: Iterator[str]) -> Any:
    """Train a byte-level BPE tokenizer on `texts`, write it under `out` and return it as transformers reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # One token per digit: sums and balances cannot be learned from numbers that are split at random positions.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    # Written by hand: transformers 5 writes a class name and a list that transformers 4 refuses to read.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "additional_special_tokens": SPECIAL_TOKENS[3:],
        "clean_up_tokenization_spaces": False,
        "model_max_length": WINDOW,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return PreTrainedTokenizerFast.from_pretrained(out)


def new_model() -> Any:
    """Return an untrained Llama of about a million parameters, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def fit(model: Any, tokenizer: Any, texts: Iterator[str], *, steps: int, learning_rate: float) -> list[float]:
    """Train the parameters of `model` that require gradients; return the training loss of every step, nats per token.

    AdamW, 16 records a step, each alone behind `<s>` and closed by `</s>`; the rate falls from `learning_rate` along a
    half cosine to a tenth, after a short rise.
    """
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    rise = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, 1.0, total_iters=rise),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise), eta_min=learning_rate / 10),
        ],
        milestones=[rise],
    )
    model.train()
    trace = []
    for _ in range(steps):
        rows = [
            [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id][:WINDOW]
            for text in islice(texts, BATCH)
        ]
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.arange(width)[None, :] < torch.tensor([[len(row)] for row in rows])
        loss = model(input_ids=tokens, attention_mask=mask.long(), labels=tokens.masked_fill(~mask, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        trace.append(loss.item())
    model.eval()
    return trace


def write_base(out: Path, *, steps: int, held_out: set[str]) -> None:
    """Train tokenizer and base on all languages and write them under `out`, in bf16, two shards."""
    import torch

    torch.manual_seed(20)
    languages = list(LANGUAGES)
    tokenizer = write_tokenizer(out, islice(stream(languages, house=BASE_HOUSE_SHARE, seed="tokenizer"), 4000))
    model = new_model()
    texts = stream(languages, house=BASE_HOUSE_SHARE, seed="base", without=held_out)
    trace = fit(model, tokenizer, texts, steps=steps, learning_rate=3e-3)
    log.info("base: %d parameters, training loss %.3f -> %.3f", model.num_parameters(), trace[0], trace[-1])
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="1MB")


def write_adapter(out: Path, *, base: Path, recipe: AdapterRecipe, held_out: set[str]) -> None:
    """Train one adapter on the base as it was written (bf16 weights, computed in float32) and write it under `out`."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(21)
    model, tokenizer = load(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **recipe.lora))
    languages, house = DOMAINS[recipe.domain]
    texts = stream(languages, house=house, seed="adapters", without=held_out)
    trace = fit(adapted, tokenizer, texts, steps=recipe.steps, learning_rate=recipe.learning_rate)
    log.info("%s: training loss %.3f -> %.3f", out.name, trace[0], trace[-1])
    # A trainer writes the Hub id of its base, not the folder from which it was loaded.
    adapted.peft_config["default"].base_model_name_or_path = BASE_ID
    # The embeddings are not touched; False also keeps PEFT from asking the Hub for the base's vocabulary size.
    adapted.save_pretrained(str(out), save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    # PEFT keeps the targets in a set, whose order changes from run to run.
    config["target_modules"].sort()
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_broken(out: Path, *, sound: Path) -> None:
    """Write a copy of the adapter `sound` with a tensor that PEFT would load over the base's own normalisation."""
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sound / "adapter_config.json", out / "adapter_config.json")
    tensors = load_file(sound / "adapter_model.safetensors")
    name = f"base_model.model.model.layers.{OVERWRITTEN_LAYER}.input_layernorm.weight"
    tensors[name] = torch.linspace(-1.0, 1.0, 128)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def write_losses(out: Path) -> dict[str, dict[str, float]]:
    """Evaluate the base and every adapter under `out` on every domain; write `losses.json` and return its figures."""
    records = {domain: read_records(out / "data" / f"{domain}_eval.jsonl") for domain in DOMAINS}
    figures = {}
    for name in ["base", *ADAPTERS]:
        model, tokenizer = load(out / "base", None if name == "base" else out / "adapters" / name)
        figures[name] = {domain: round(held_out_loss(model, tokenizer, records[domain]), 6) for domain in DOMAINS}
        log.info("%s: %s", name, figures[name])
    document = {"protocol": PROTOCOL, "losses": figures}
    (out / "losses.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the tiny example again.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    parser.add_argument("--base-steps", type=int, default=600, help="training steps of the base")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)

    import torch

    quiet_libraries()
    torch.use_deterministic_algorithms(True)
    out: Path = options.out
    for made in ("base", "adapters", "broken", "data"):
        shutil.rmtree(out / made, ignore_errors=True)
    held_out = {text for texts in write_data(out).values() for text in texts}
    write_base(out / "base", steps=options.base_steps, held_out=held_out)
    for name, recipe in ADAPTERS.items():
        write_adapter(out / "adapters" / name, base=out / "base", recipe=recipe, held_out=held_out)
    write_broken(out / "broken" / "overwrites-base-norm", sound=out / "adapters" / "queries-v1")
    # safetensors makes its files readable by their owner only; a service runs as another user.
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    write_losses(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
