"""Divergence of a QLoRA adapter, on each base that it could be served on, from the model that was trained.

That model is the dequantized base with the unmerged adapter, computed in float32. bitsandbytes repacks weights in place
at the first forward pass outside training (on processors with AVX-512 for bfloat16), so a model in NF4 is run and
discarded, and its weights are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.drift_types import ALL

# Training steps: more than for the other adapters, to compensate for the base in NF4.
STEPS: Final = 60
# (label, dtype, onto) of the merges.
_MERGED: Final = (
    ("merged onto NF4, float32", "float32", "nf4"),
    ("merged onto NF4, bfloat16", "bfloat16", "nf4"),
    ("merged into the full-precision base, bfloat16", "bfloat16", "fp"),
    ("merged onto NF4 and quantized again", "nf4", "nf4"),
    ("merged into the full-precision base and quantized", "nf4", "fp"),
)

Evaluate = Callable[[Any], tuple[list[Any], float]]
"""A model -> log-probabilities on the probes, nats per token on the held-out texts."""


def measured(base: Path, scratch: Path, fit: Callable[[Any, int], float], evaluate: Evaluate) -> dict[str, Any]:
    """fit: trains a model for a number of steps. scratch: an empty folder."""
    from lora_kernels.merging import merge_folder
    from lora_kernels.validating import models
    from lora_kernels.validating.agreement import divergence, top_agreement

    adapter = scratch / "adapter"
    adapted = _adapted(base)
    fit(adapted, STEPS)
    adapted.save_pretrained(str(adapter), save_embedding_layers=False)
    del adapted
    unadapted = evaluate(_dequantized(base))
    trained = evaluate(models.attach(_dequantized(base), adapter))

    def row(label: str, model: Any) -> dict[str, Any]:
        found, loss = evaluate(model)
        return {
            "label": label,
            "loss": loss,
            "divergence": divergence(trained[0], found),
            "top_agreement": top_agreement(trained[0], found),
        }

    rows = [
        row("unmerged, on bitsandbytes' NF4", models.attach(models.load_base(base, "nf4"), adapter)),
        row("unmerged, on the full-precision base", models.attach(models.load_base(base), adapter)),
    ]
    for number, (label, dtype, onto) in enumerate(_MERGED):
        out = scratch / f"merged-{number}"
        report = merge_folder(base, [(adapter, 1.0)], out, dtype=dtype, onto=onto, min_kept=None)
        rows.append({**row(label, models.load_base(out)), "kept": report.kept})
    return {"steps": STEPS, "base_loss": unadapted[1], "loss": trained[1], "rows": rows}


def _adapted(base: Path) -> Any:
    import peft

    from lora_kernels.validating.models import load_base

    return peft.get_peft_model(
        load_base(base, "nf4"), peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=ALL)
    )


def _dequantized(base: Path) -> Any:
    """The base in float32, with linear layers except the output layer quantized to NF4 (bitsandbytes) and back."""
    import torch
    from bitsandbytes import functional

    from lora_kernels.validating.models import load_base

    model = load_base(base)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                # As one row: one dequantization path of bitsandbytes is wrong if blocks straddle rows.
                flat = module.weight.reshape(1, -1)
                codes, state = functional.quantize_4bit(flat, quant_type="nf4", compress_statistics=True)
                module.weight.copy_(functional.dequantize_4bit(codes, state).reshape(module.weight.shape))
    return model
