"""Train a small adapter, as a person would: in ten seconds, from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train(base: Path, texts: Sequence[str], to: Path, *, seed: int, steps: int = 40, rate: float = 2e-3) -> None:
    """LoRA of rank 8 on all linear layers, batches of 8 texts of at most 96 tokens. The seed gives start and order."""
    import torch
    from peft import LoraConfig, get_peft_model

    from lora_kernels.validating import models

    torch.manual_seed(seed)
    tokenizer = models.load_tokenizer(base)
    config: Any = LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model: Any = get_peft_model(models.load_base(base), config).train()
    ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:96] for text in texts]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    drawn = random.Random(seed)
    for step in range(steps):
        batch = drawn.sample(ids, 8)
        longest = max(map(len, batch))
        tokens = torch.tensor([one + [0] * (longest - len(one)) for one in batch])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in batch])
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps) * min(1, (step + 1) / 10)
        loss = model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(to)
