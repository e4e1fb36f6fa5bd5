"""Composing adapters of the shape of a 1.1-billion-parameter Llama, ours against PEFT's `add_weighted_adapter`.

    python kernels/benchmarks/compose.py [--adapters 8] [--rank 16] [--layers 22] [--methods svd,ties] [--peft-layers 1]

Ours is timed as a whole process, from its start to the folder on disk. PEFT is timed for the call alone, and with the
loading of the adapters into a model that is in memory; on the first layers, which are all alike, and multiplied up.
The error of either is measured against float64 before a time is printed, and no time is printed where ours is the
larger one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lora_kernels.adapters import AdapterIdentity, LowRankModule, open_adapter, write_adapter
from lora_kernels.composing import compose_folders
from lora_reg.spec.methods import METHODS

HIDDEN, NARROW, INNER = 2048, 256, 5632
SHAPES = {
    "mlp.down_proj": (HIDDEN, INNER),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "self_attn.k_proj": (NARROW, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (NARROW, HIDDEN),
}
MODULE = "model.layers.0.mlp.gate_proj"  # the one whose error is measured
SPECTRAL = ("svd",)
COLUMNS = (
    "method",
    "ours, s",
    "processors, s",
    "peak, MB",
    "PEFT's call, s",
    "ratio",
    "with loading, s",
    "ratio",
    "error",
    "error, PEFT",
    "norm to PEFT's",
)
OURS = """
import sys
from lora_kernels.composing import compose_folders
import json
folders, out, method, parameters = json.loads(sys.argv[1])
compose_folders([(folder, 0.125) for folder in folders], out, method=method, parameters=parameters)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def make_adapters(folder: Path, count: int, rank: int, layers: int) -> list[Path]:
    """Random adapters as training leaves them: A as it was drawn, B small. bf16."""
    folders = []
    for number in range(count):
        random = np.random.default_rng(number)
        modules = [
            LowRankModule(
                f"model.layers.{layer}.{name}",
                "linear",
                random.uniform(-1, 1, (rank, columns)).astype(np.float32) / np.float32(columns**0.5),
                (1e-3 * random.standard_normal((rows, rank))).astype(np.float32),
            )
            for layer in range(layers)
            for name, (rows, columns) in SHAPES.items()
        ]
        folders.append(folder / f"adapter-{number}")
        write_adapter(folders[-1], AdapterIdentity("bench", "CAUSAL_LM"), modules, dtype="BF16")
    return folders


def ours(folders: list[Path], out: Path, method: str, parameters: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds of the clock and of the processors, and the peak memory in bytes, of a process of its own."""
    argument = json.dumps([[str(folder) for folder in folders], str(out), method, parameters])
    before, begin = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", OURS, argument], check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, os.times()
    processors = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, processors, int(done.stdout) * 1024


def peft_model(folders: list[Path], layers: int) -> tuple[Any, float]:
    """The adapters in a model of random weights, and the seconds that their loading took."""
    import peft
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=8,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.float32)
    begin = time.perf_counter()
    adapted = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="a0")
    for number, folder in enumerate(folders[1:], 1):
        adapted.load_adapter(folder, f"a{number}")
    return adapted, time.perf_counter() - begin


def exact(folders: list[Path], module: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """B and A of the best approximation of the sum, in float64, by another way than ours: QR by Householder."""
    lefts, rights = [], []
    for folder in folders:
        with open_adapter(folder) as reader:
            found = reader.load(module)
        lefts.append(found.b.astype(np.float64))
        rights.append(0.125 * found.scale * found.a.astype(np.float64))
    q, r = np.linalg.qr(np.hstack(lefts))
    p, s = np.linalg.qr(np.vstack(rights).T)
    u, sigma, v = np.linalg.svd(r @ s.T)
    return q @ u[:, :rank] * sigma[:rank], v[:rank] @ p.T


def loaded_pair(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_adapter(folder) as reader:
        module = reader.load(MODULE)
    return module.b, module.a


def peft_factors(adapted: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    layer = adapted.get_submodule(f"base_model.model.{MODULE}")
    b, a = (half[name].weight.detach().numpy() for half in (layer.lora_B, layer.lora_A))
    return b, a


def error(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> float:
    """||difference|| / ||wanted||, of products."""
    _, left = np.linalg.qr(np.hstack([found[0], -wanted[0]]))
    _, right = np.linalg.qr(np.vstack([found[1], wanted[1]]).T)
    return float(np.linalg.norm(left @ right.T) / np.linalg.norm(wanted[0] @ wanted[1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--methods", default="svd,cat,linear,ties,dare_linear,dare_ties,magnitude_prune")
    parser.add_argument("--peft-layers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = make_adapters(folder, arguments.adapters, arguments.rank, arguments.layers)
        adapted, loading = peft_model(folders, arguments.peft_layers) if arguments.peft_layers else (None, 0.0)
        print("|", " | ".join(COLUMNS), "|")
        print("|" + "---|" * len(COLUMNS))
        for method in arguments.methods.split(","):
            compare(method, folders, folder, adapted, loading, arguments)


def compare(
    method: str, folders: list[Path], folder: Path, adapted: Any, loading: float, arguments: argparse.Namespace
) -> None:
    wanted = {parameter.name for parameter in METHODS[method].parameters}
    parameters = {key: value for key, value in {"density": 0.5, "rank": arguments.rank}.items() if key in wanted}
    out = folder / f"out-{method}"
    wall, processors, peak = ours(folders, out, method, parameters)
    row = [f"{wall:.2f}", f"{processors:.2f}", f"{peak / 1e6:.0f}"]
    if adapted is None or not METHODS[method].peft:
        print("|", " | ".join([method, *row, *[""] * 7]), "|", flush=True)
        return
    names = [f"a{number}" for number in range(len(folders))]
    options = {"svd_rank": parameters.get("rank"), "density": parameters.get("density")}
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.add_weighted_adapter(names, [0.125] * len(names), method, combination_type=method, **options)
    layers = arguments.layers / arguments.peft_layers
    call = (time.perf_counter() - begin) * layers
    row += [f"{seconds:.2f} | {seconds / wall:.1f}" for seconds in (call, call + loading * layers)]
    if method in SPECTRAL:
        best = exact(folders, MODULE, arguments.rank)
        # What is stored is bf16, as the inputs are; PEFT's is float32 here, so ours is compared in float32 too.
        float_out = folder / f"out-{method}-float32"
        inputs = [(path, 0.125) for path in folders]
        compose_folders(inputs, float_out, method=method, parameters=parameters, dtype="float32")
        mine, other = (error(pair, best) for pair in (loaded_pair(float_out), peft_factors(adapted, method)))
        if mine > other:
            raise SystemExit(f"{method}: our error {mine:.2e} is larger than PEFT's {other:.2e}; no time is printed.")
        row += [f"{mine:.1e}", f"{other:.1e}"]
    else:
        row += ["", ""]
    norms = [np.linalg.norm(b @ a) for b, a in (loaded_pair(out), peft_factors(adapted, method))]
    row.append(f"{norms[0] / norms[1]:.4f}")
    print("|", " | ".join([method, *row]), "|", flush=True)


if __name__ == "__main__":
    main()
