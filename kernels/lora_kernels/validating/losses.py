"""Losses per record, and logits on probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from lora_contract.dataset import MAX_LINE, Record, parse_records, split_lines

MAX_TOKENS: Final = 512
# Batches of 8 took 1.8 times less processor time than 32: the activations stay in cache.
BATCH: Final = 8
PROBES: Final = 8
_PROBE_TEXTS: Final = (
    "A registry keeps what was made, and tells from what.",
    "def area(width: float, height: float) -> float:\n    return width * height\n",
    "select name, count(*) from visits group by name order by 2 desc;",
    "In the year of the great flood the bridge at the mill was carried away.",
)


def read_records(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return list(parse_records(split_lines(iter(lambda: file.read(MAX_LINE), b""))))


class Encoded:
    """A record as token ids. first: index of the first predicted token."""

    def __init__(self, tokenizer: Any, record: Record) -> None:
        start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        before = start + (_ids(tokenizer, record.prompt) if record.prompt else [])
        self.ids = (before + _ids(tokenizer, record.text))[:MAX_TOKENS]
        self.first = max(len(before), 1)

    @property
    def tokens(self) -> int:
        return max(len(self.ids) - self.first, 0)


def encode(tokenizer: Any, records: Sequence[Record]) -> list[Encoded]:
    return [Encoded(tokenizer, record) for record in records]


def losses(model: Any, items: Sequence[Encoded], progress: Callable[[int], None]) -> list[float | None]:
    """Sum of -log p over the predicted tokens of each record, each in its own context; None if it is not finite.
    progress: called with the number of records done."""
    order = sorted(range(len(items)), key=lambda index: len(items[index].ids))
    found: list[float | None] = [0.0] * len(items)
    for start in range(0, len(order), BATCH):
        batch = [index for index in order[start : start + BATCH] if items[index].tokens]
        if batch:
            logits = _logits(model, [items[index].ids for index in batch])
            for row, index in enumerate(batch):
                value = float(record_nats(logits[row], items[index]))
                found[index] = value if math.isfinite(value) else None
        progress(min(start + BATCH, len(order)))
    return found


def record_nats(logits: torch.Tensor, item: Encoded) -> torch.Tensor:
    """Sum of -log p over the predicted tokens of one record. logits: (tokens or more, vocabulary)."""
    # In float64 the rounding of a sum of 500 log-probabilities is far below any threshold.
    predicted = logits[item.first - 1 : len(item.ids) - 1].double().log_softmax(-1)
    target = torch.tensor(item.ids[item.first :], device=predicted.device)
    return -predicted.gather(1, target[:, None]).sum()


def probes(tokenizer: Any, items: Sequence[Encoded]) -> list[list[int]]:
    """Token ids of a few texts: records of the evaluation sets if there are any, else built-in texts."""
    chosen = [item.ids[:64] for item in items[:PROBES]]
    return chosen or [Encoded(tokenizer, Record(text)).ids for text in _PROBE_TEXTS]


def probe_logits(model: Any, ids: Sequence[Sequence[int]]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Log-probabilities (tokens, vocabulary) of each probe."""
    logits = _logits(model, ids)
    return [logits[row, : len(one)].double().log_softmax(-1).cpu().numpy() for row, one in enumerate(ids)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _logits(model: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return forward(model, ids)


def forward(model: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits (records, longest, vocabulary), meaningless past the end of a shorter record. In a causal model, later
    tokens have no effect on earlier ones, so padding needs only the attention mask."""
    longest = max(map(len, ids))
    padded = torch.zeros((len(ids), longest), dtype=torch.long)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    result: torch.Tensor = model(
        input_ids=padded.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).logits
    # Virtual tokens of prompt tuning precede the text and have logits as well.
    return result[:, -longest:].float()
