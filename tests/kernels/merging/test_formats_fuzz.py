"""Damaged quantized bases: whatever the header or the config says, a merge succeeds or refuses.

`LORA_REG_FUZZ=3000` runs more cases than the suite does.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_contract.tensors import DTYPE_BYTES
from lora_kernels.merging import merge_folder
from tests.kernels.checkpoints import pair, write_adapter
from tests.support.quantizing import quantized_checkpoints

Q = "model.layers.0.self_attn.q_proj"
CASES = int(os.environ.get("LORA_REG_FUZZ", "120"))
LEAVES = ("weight_g_idx", "g_idx", "weight_zero_point", "weight_scale_2", "input_scale", "scale", "weight_global_scale")
SETTINGS: tuple[Any, ...] = (
    *(None, 0, -1, 3, 4, 8, "gptq", "x", True, [], {}, [0, 0], [1, 32]),
    *({"a": {"weights": {"num_bits": bits, "group_size": 7, "type": "int"}}} for bits in (0, 3, 5, "4", 9)),
)
Tensor = tuple[str, list[int], bytes]


def of_size(data: bytes, dtype: str, shape: list[int]) -> Tensor:
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    return dtype, shape, (data * 9)[:size].ljust(size, b"\1")


def damage(rng: random.Random, tensors: dict[str, Tensor], quantization: dict[str, Any]) -> None:
    name = rng.choice([name for name in tensors if name.startswith(f"{Q}.")] or ["lm_head.weight"])
    dtype, shape, data = tensors[name]
    changes = {
        "another dtype": lambda: of_size(data, rng.choice(sorted(DTYPE_BYTES)), shape),
        "another size": lambda: of_size(
            data, dtype, [max(0, side + rng.choice([-1, 1, -8, 8, 32, -side])) for side in shape]
        ),
        "noise": lambda: (dtype, shape, rng.randbytes(len(data))),
        "ones": lambda: (dtype, shape, b"\xff" * len(data)),
        "turned": lambda: (dtype, shape[::-1], data),
        "more dimensions": lambda: of_size(
            data, dtype, rng.choice([[math.prod(shape)], [1, *shape], [*shape, 1], [2, *shape]])
        ),
    }
    kind = rng.choice([*changes, "dropped", "added", "said"])
    if kind in changes:
        tensors[name] = changes[kind]()
    elif kind == "dropped":
        del tensors[name]
    elif kind == "added":
        tensors.setdefault(f"{Q}.{rng.choice(LEAVES)}", (dtype, shape, data))
    else:
        quantization[rng.choice(sorted(quantization))] = rng.choice(SETTINGS)


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    encoded = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)


@pytest.mark.filterwarnings("error")
def test_a_damaged_base_is_merged_or_refused(tmp_path: Path) -> None:
    rng = random.Random(7)
    cases = sorted(path.parent for path in quantized_checkpoints().glob("*/config.json"))
    adapter = write_adapter(tmp_path / "adapter", pair(Q, out=64, in_=64, r=4, seed=1, size=0.05))
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    seen = set()
    for _ in range(CASES):
        case = rng.choice(cases)
        raw = (case / "model.safetensors").read_bytes()
        start = 8 + struct.unpack_from("<Q", raw)[0]
        tensors = {
            name: (
                entry["dtype"],
                entry["shape"],
                raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            )
            for name, entry in json.loads(raw[8:start]).items()
            if name != "__metadata__"
        }
        config = json.loads((case / "config.json").read_text())
        for _ in range(rng.randint(1, 3)):
            damage(rng, tensors, config["quantization_config"])
        write(base, tensors)
        (base / "config.json").write_text(json.dumps(config))
        shutil.rmtree(out, ignore_errors=True)
        try:
            merge_folder(base, [(adapter, 1.0)], out, threads=1, min_kept=None)
            seen.add("merged")
        except RegistryError as error:
            seen.add(error.code)
            assert error.code in ("rejected", "unsupported")
            assert not out.exists()
    assert seen == {"merged", "rejected", "unsupported"}
