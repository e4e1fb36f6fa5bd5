"""What merging costs in what a model says: adapters of every type, trained a little by PEFT, merged and compared.

Each is trained on the example base of this checkout (`examples/tiny`) on the house variant of the queries, saved as
PEFT saves it, loaded again and read by `lora_kernels.validating`, as a validation does. Nothing is timed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.drift_types import TRAINED, Trained
from benchmarks.options import Options
from benchmarks.process import ROOT

EXAMPLE: Final = ROOT / "examples" / "tiny"
STEPS: Final = 30
_DOMAIN: Final = "queries"


def run(_: Options, told: Callable[[str], None]) -> dict[str, Any]:
    """A row for each of TRAINED, and the reasons of the types that have no merged form."""
    from lora_kernels.merging.match.reasons import REASONS

    rows = []
    with tempfile.TemporaryDirectory(prefix="lora-reg-drift-") as folder:
        bases = {False: EXAMPLE / "base", True: with_biases(Path(folder) / "biased")}
        for trained in TRAINED:
            row = measured(trained, bases[trained.biased], Path(folder) / "adapter")
            told(f"  {trained.label:34} {row['loss']:.3f}  {row['effect']:.1e}  {_float32(row)}")
            rows.append(row)
    return {"steps": STEPS, "probes": _probes_told(), "rows": rows, "unmerged": dict(sorted(REASONS.items()))}


def measured(trained: Trained, base: Path, folder: Path) -> dict[str, Any]:
    """Train, save, load, merge in every form. loss: nats per token of the last step; effect: nats between the base and
    the adapter on it; forms: as of the layer `agreement`. folder: for the adapter, emptied."""
    from lora_kernels.validating import losses, models
    from lora_kernels.validating.agreement import agreement, divergence

    shutil.rmtree(folder, ignore_errors=True)
    loss = train(trained, base, folder)
    ids = probe_ids(base)
    model = models.load_base(base)
    before = losses.probe_logits(model, ids)
    after = losses.probe_logits(models.attach(model, folder), ids)
    found = agreement(base, folder, ids, after, lambda _form: None)
    return {
        "label": trained.label,
        "type": trained.type,
        "options": trained.options,
        "rate": trained.rate,
        "biased": trained.biased,
        "loss": loss,
        "effect": divergence(before, after),
        "forms": found.facts["forms"],
    }


def train(trained: Trained, base: Path, folder: Path) -> float:
    """A few steps, by PEFT, on the weights as they are stored, computed in float32; the loss of the last."""
    import peft
    import torch

    from examples.tiny.languages import stream
    from examples.tiny.train import fit
    from lora_kernels.validating import models

    torch.manual_seed(22)
    config = getattr(peft, trained.config)(task_type="CAUSAL_LM", **trained.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(models.load_base(base), config)
        texts = stream([_DOMAIN], house=1.0, seed="adapters", without=set(_held_out()))
        trace = fit(adapted, models.load_tokenizer(base), texts, steps=STEPS, learning_rate=trained.rate)
        # False keeps PEFT from asking a hub for the base's vocabulary.
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return trace[-1]


def probe_ids(base: Path) -> list[list[int]]:
    """As a validation on the held-out queries takes them."""
    from lora_kernels.validating import losses, models

    records = losses.read_records(EXAMPLE / "data" / f"{_DOMAIN}_eval.jsonl")
    tokenizer = models.load_tokenizer(base)
    return losses.probes(tokenizer, losses.encode(tokenizer, records))


def with_biases(folder: Path) -> Path:
    """The example's base with biases on its attention, of random numbers as small as a trained model's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lora_kernels.validating.models import quiet

    base = EXAMPLE / "base"
    torch.manual_seed(23)
    with quiet():
        config: Any = AutoConfig.from_pretrained(base, attention_bias=True)
        model: Any = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.02)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    return folder


def _held_out() -> Sequence[str]:
    lines = (EXAMPLE / "data" / f"{_DOMAIN}_eval.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _probes_told() -> dict[str, int]:
    ids = probe_ids(EXAMPLE / "base")
    return {"texts": len(ids), "tokens": sum(map(len, ids))}


def _float32(row: dict[str, Any]) -> str:
    found = row["forms"]["float32"]
    return f"refused: {found['refused']}" if "refused" in found else f"{found['divergence']:.1e}"
