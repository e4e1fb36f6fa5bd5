"""The plan of a merge, as lines. Pure."""

from __future__ import annotations

from typing import Any

from lora_reg.formatting.devices import device_line
from lora_reg.formatting.text import plural, size, table


def lines(plan: dict[str, Any], execution: dict[str, Any]) -> list[str]:
    tensors = [tensor for shard in plan["shards"] for tensor in shard["tensors"]]
    changed = [
        tensor
        for tensor in tensors
        if tensor["deltas"] or tensor["quantized"] is not None or tensor["dtype"] != tensor["source_dtype"]
    ]
    files = [
        (
            size(shard["size"]),
            str(len(shard["tensors"])),
            str(sum(bool(tensor["deltas"]) for tensor in shard["tensors"])),
            shard["file"],
        )
        for shard in plan["shards"]
    ]
    rows = [
        (
            ", ".join(sorted({str(delta["adapter"] + 1) for delta in tensor["deltas"]})) or "-",
            " x ".join(map(str, tensor["shape"])),
            _types(tensor),
            tensor["name"],
        )
        for tensor in changed
    ]
    total, computed = (sum(tensor["end"] - tensor["start"] for tensor in group) for group in (tensors, changed))
    return [
        *table(("SIZE", "TENSORS", "CHANGED", "FILE"), files),
        "",
        *table(("ADAPTERS", "SHAPE", "DTYPE", "TENSOR"), rows),
        "",
        *(
            f"adapter {number}: {adapter['type']}, weight {adapter['weight']:g}"
            + (f"; {plural(len(adapter['ignored']), 'tensor')} without effect ignored" if adapter["ignored"] else "")
            for number, adapter in enumerate(plan["adapters"], 1)
        ),
        device_line(execution),
        f"{size(total - computed)} copied, {size(computed)} computed, {size(total)} in total; nothing was written",
    ]


def _types(tensor: dict[str, Any]) -> str:
    before, after = tensor["source_dtype"], tensor["dtype"]
    if tensor["quantized"] is not None:
        before = tensor["quantized"]["scheme"]
    return str(after) if before == after else f"{before} to {after}"


def touched_names(plan: dict[str, Any]) -> list[str]:
    return [tensor["name"] for shard in plan["shards"] for tensor in shard["tensors"] if tensor["deltas"]]
