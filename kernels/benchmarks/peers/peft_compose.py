"""python peft_compose.py OUT METHOD PARAMETERS BASE ADAPTER...: `add_weighted_adapter` with weights of one, and save.

The base is loaded in float32, so that PEFT does not round the result to bf16. Prints the seconds of each step as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(out: str, method: str, parameters: str, base: str, *adapters: str) -> None:
    times = [time.perf_counter()]
    names = [f"a{n}" for n in range(len(adapters))]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        wrapped.load_adapter(adapter, adapter_name=name)
    times.append(time.perf_counter())
    torch.manual_seed(0)
    known = json.loads(parameters)
    wrapped.add_weighted_adapter(
        names,
        [1.0] * len(names),
        "composed",
        combination_type=method,
        svd_rank=known.get("rank"),
        density=known.get("density"),
    )
    times.append(time.perf_counter())
    # PEFT writes an adapter that is not called "default" into a folder of its name.
    wrapped.save_pretrained(f"{out}.saved", selected_adapters=["composed"])
    times.append(time.perf_counter())
    shutil.move(Path(f"{out}.saved") / "composed", out)
    shutil.rmtree(f"{out}.saved")
    spans = (after - before for before, after in pairwise(times))
    print(json.dumps(dict(zip(("load", "combine", "save"), spans, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
