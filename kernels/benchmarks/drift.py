"""Effect of merging on a model's outputs: adapters of every type, briefly trained with PEFT, merged and compared.

Each is trained on the example base of this checkout (`examples/tiny`) on the house variant of the queries, saved and
loaded by PEFT, and measured by `lora_kernels.validating`, as in a validation. Nothing is timed. Everything runs on one
CPU thread, so that the same machine gives the same figures.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from benchmarks import drift_qlora
from benchmarks.drift_types import TRAINED, Trained
from benchmarks.options import Options
from benchmarks.process import ROOT
from lora_contract.validation import mean_loss

EXAMPLE: Final = ROOT / "examples" / "tiny"
HELD_OUT: Final = EXAMPLE / "data" / "queries_eval.jsonl"
STEPS: Final = 30


def run(_: Options, log: Callable[[str], None]) -> dict[str, Any]:
    """Measure each of TRAINED and a QLoRA adapter; add the reasons of the types without a merged form."""
    # Before CUDA is initialized, so that models do not go to a GPU. Other suites run in their own processes.
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        return _run(log)


def _run(log: Callable[[str], None]) -> dict[str, Any]:
    import torch

    from lora_kernels.types.refused import REASONS

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lora-reg-drift-") as folder:
        bases = {False: EXAMPLE / "base", True: with_biases(Path(folder) / "biased")}
        for trained in TRAINED:
            row = measured(trained, bases[trained.biased], Path(folder) / "adapter")
            log(f"  {trained.label:34} {row['loss']:.3f}  {row['effect']:.1e}  {_float32(row)}")
            rows.append(row)
        qlora = measured_qlora(Path(folder) / "qlora")
        for row in qlora["rows"]:
            log(f"  {row['label']:52} {row['loss']:.4f}  {row['divergence']:.1e}")
    ids = probe_ids(EXAMPLE / "base")
    return {
        "steps": STEPS,
        "probes": {"texts": len(ids), "tokens": sum(map(len, ids))},
        "rows": rows,
        "unmerged": dict(sorted(REASONS.items())),
        "qlora": qlora,
    }


def measured(trained: Trained, base: Path, folder: Path) -> dict[str, Any]:
    """Train, save, load, and merge in every form. folder: for the adapter, emptied first.

    In the result, loss: nats per token of the last step; effect: nats between the base and the adapter; forms: those of
    the layer `agreement`.
    """
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


def measured_qlora(scratch: Path) -> dict[str, Any]:
    """See `drift_qlora`; losses are those of the held-out queries."""
    import torch

    from lora_kernels.validating import losses, models

    base = EXAMPLE / "base"
    scratch.mkdir()
    tokenizer = models.load_tokenizer(base)
    items = losses.encode(tokenizer, losses.read_records(HELD_OUT))
    ids, tokens = probe_ids(base), [item.tokens for item in items]

    def evaluate(model: Any) -> tuple[list[Any], float]:
        nats = losses.losses(model, items, lambda _done: None)
        return losses.probe_logits(model, ids), mean_loss(nats, tokens)

    torch.manual_seed(24)
    with models.quiet():
        return drift_qlora.measured(base, scratch, lambda model, steps: _fit(model, base, steps, 5e-3), evaluate)


def train(trained: Trained, base: Path, folder: Path) -> float:
    """Train a few steps with PEFT on the stored weights, computed in float32. Returns the loss of the last step."""
    import peft
    import torch

    from lora_kernels.validating import models

    torch.manual_seed(22)
    config = getattr(peft, trained.config)(task_type="CAUSAL_LM", **trained.options)
    with models.quiet():
        adapted = peft.get_peft_model(models.load_base(base), config)
        loss = _fit(adapted, base, STEPS, trained.rate)
        # False keeps PEFT from asking a hub for the base's vocabulary.
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return loss


def probe_ids(base: Path) -> list[list[int]]:
    """The probes of a validation on the held-out queries."""
    from lora_kernels.validating import losses, models

    tokenizer = models.load_tokenizer(base)
    return losses.probes(tokenizer, losses.encode(tokenizer, losses.read_records(HELD_OUT)))


def with_biases(folder: Path) -> Path:
    """The example's base with random attention biases, as small as those of a trained model."""
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


def _fit(model: Any, base: Path, steps: int, rate: float) -> float:
    from examples.tiny.languages import stream
    from examples.tiny.train import fit
    from lora_kernels.validating import losses, models

    held_out = {record.text for record in losses.read_records(HELD_OUT)}
    texts = stream(["queries"], house=1.0, seed="adapters", without=held_out)
    return fit(model, models.load_tokenizer(base), texts, steps=steps, learning_rate=rate)[-1]


def _float32(row: dict[str, Any]) -> str:
    found = row["forms"]["float32"]
    return f"refused: {found['refused']}" if "refused" in found else f"{found['divergence']:.1e}"
