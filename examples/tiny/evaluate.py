"""Held-out loss of a causal language model, with or without a LoRA adapter.

    python examples/tiny/evaluate.py --model DIR [--adapter DIR] --data FILE [--json]

The figure is in nats per token: each record alone behind the beginning-of-sequence token, cut at the model's window,
in float32; the mean over all predicted tokens of all records. Nothing is fetched from a network.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROTOCOL = (
    "nats per token; each record alone behind <s>, cut at the model's window, float32; "
    "mean over all predicted tokens of all records, the end token not among them"
)


def read_records(path: Path) -> list[str]:
    """Return the texts of a file of JSON lines `{"text": ...}`."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def quiet_libraries() -> None:
    """Keep progress bars and notices of libraries off the terminal, for programs whose output is read by people."""
    from transformers.utils import logging as transformers_logging

    notices: Any = transformers_logging
    notices.disable_progress_bar()
    # PEFT imports bitsandbytes, which warns about a kernel that no adapter here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT 0.21 calls what transformers 5 has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load(model_dir: Path, adapter_dir: Path | None = None) -> tuple[Any, Any]:
    """Return (model in float32 and evaluation mode, tokenizer); `adapter_dir` None means the model alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    if adapter_dir is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter_dir))
    return model.eval(), tokenizer


def held_out_loss(model: Any, tokenizer: Any, records: Sequence[str], *, batch_size: int = 8) -> float:
    """Return the mean negative log-likelihood of `records` in nats per predicted token.

    `batch_size` changes the speed only: padding stands to the right, where a causal model does not see it. Raises
    ValueError when the records hold no token to predict.
    """
    import torch

    window = model.config.max_position_embeddings
    encoded = [[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)][:window] for text in records]
    # Records of similar length share a batch, to keep padding small.
    encoded.sort(key=len)
    nats, predicted = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        mask = torch.arange(width)[None, :] < lengths
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        nats += float(losses[mask[:, 1:]].double().sum())
        predicted += int(mask[:, 1:].sum())
    if predicted == 0:
        raise ValueError("no token to predict: the records are empty")
    return nats / predicted


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Held-out loss in nats per token.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base or merged model")
    parser.add_argument("--adapter", type=Path, help="folder of a PEFT adapter to attach")
    parser.add_argument("--data", type=Path, required=True, help='JSON lines of {"text": ...}')
    parser.add_argument("--json", action="store_true", help="one JSON document instead of one number")
    options = parser.parse_args(arguments)
    quiet_libraries()
    records = read_records(options.data)
    loss = held_out_loss(*load(options.model, options.adapter), records)
    shown = json.dumps({"loss": loss, "records": len(records), "protocol": PROTOCOL}) if options.json else f"{loss:.4f}"
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
