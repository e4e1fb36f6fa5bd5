"""The merge in Triton: matrices are grouped by the kernel that merges them, with one launch for each group."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lora_kernels.ops import aot
from lora_kernels.ops.launch import upload
from lora_kernels.ops.merge_low_rank import any_layout, forms
from lora_kernels.ops.merge_low_rank.forms import Form, Item
from lora_kernels.ops.merge_low_rank.partials import PARTIALS, read
from lora_kernels.ops.merge_low_rank.stats import MergeStats


def merge(items: Sequence[Item], *, stats: bool) -> list[MergeStats] | list[None]:
    """Merge checked items (W, adapters, output), with one dtype of W and one of outputs, into their outputs."""
    found = launch(items, stats=stats)
    return [None] * len(items) if found is None else read(found, [out for _, _, out in items])


def launch(items: Sequence[Item], *, stats: bool) -> torch.Tensor | None:
    """As `merge`, without waiting for the device. Returns what `partials.read` takes if statistics are requested."""
    groups: dict[Form | None, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(forms.form_of(item, stats=stats), []).append(index)
    found = None
    for form, indices in groups.items():
        chosen = [items[index] for index in indices]
        sums = any_layout.launch(chosen, stats=stats) if form is None else forms.launch(chosen, form)
        if sums is None or len(groups) == 1:
            found = sums
            continue
        if found is None:
            found = torch.empty((len(items), PARTIALS), dtype=torch.float64, device=sums.device)
        found[upload(indices, torch.int64, sums.device)] = sums
    return found


def variants() -> list[aot.Variant]:
    return [*forms.variants(), *any_layout.variants()]
