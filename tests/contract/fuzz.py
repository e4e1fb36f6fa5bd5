"""Mutated headers and configs, judged by us and by the libraries that will read them: `python -m tests.contract.fuzz N`.

What the libraries refuse and we accept is printed. On purpose it is one thing: an AdaLoRA config without total_step, which
a merge does not need.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lora_contract.adapter.agreement import read_config
from lora_contract.errors import RegistryError
from lora_contract.tensors import parse_header

VALUES: Final[list[Any]] = [
    *(None, True, False, 0, -1, 1, 2, 8, 1 << 31, 1 << 62, 1 << 64, -0.0, 0.5, 1e30, 1e308, "", "x", "F32", "BF16", "I8"),
    *([], [0], [1, 2], [[]], {}, {"a": 1}, {"a": {"b": [1]}}, "q_proj", ["q_proj"], ".*", "(a+)+$", "é", "\u0000", "all-linear"),
]  # fmt: skip
_PLAIN: Final = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
SOURCES: Final[list[dict[str, Any]]] = [
    _PLAIN,
    {
        **_PLAIN,
        "use_dora": True,
        "lora_bias": False,
        "init_lora_weights": True,
        "megatron_config": None,
        "arrow_config": {"top_k": 3, "router_temperature": 1.0},
        "eva_config": {"rho": 2.0, "tau": 0.99},
        "kasa_config": {"beta": 1e-4, "gamma": 1e-3},
        "monteclora_config": {"num_samples": 8, "dirichlet_prior": 0.1, "buffer_size": 150, "sample_scaler": 1e-4},
        "use_bdlora": {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": [], "nblocks": 2},
        "velora_config": {"num_groups": 64, "scale": 1.0, "init_type": "random"},
    },
]


@dataclass
class Result:
    """cases: by our answer and the library's. accepted: what we accept and the library refuses, by its reason."""

    cases: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, bytes] = field(default_factory=dict)
    slowest: float = 0.0
    megabytes: float = 0.0


def run(make: Callable[[random.Random], bytes], ours: Callable[[bytes], Any], theirs: Callable[[bytes], Any], count: int, seed: int) -> Result:  # fmt: skip
    """Judge `count` cases. Raises what `ours` raises if it is no refusal: a crash."""
    result, generator = Result(), random.Random(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        case = make(generator)
        begun = time.process_time()
        try:
            ours(case)
            here = "accepted"
        except RegistryError as error:
            assert error.code == "rejected", error
            here = "refused"
        result.slowest = max(result.slowest, time.process_time() - begun)
        reason = _refusal(theirs, case)
        result.cases[f"{here} here, {'accepted' if reason is None else 'refused'} there"] += 1
        if here == "accepted" and reason is not None:
            result.accepted[reason[:90]] += 1
            result.examples.setdefault(reason[:90], case)
    result.megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return result


def headers(count: int, seed: int = 0) -> Result:
    from safetensors import deserialize

    return run(_file, lambda case: parse_header(case, len(case)), deserialize, count, seed)


def configs(count: int, seed: int = 0, sources: list[dict[str, Any]] | None = None) -> Result:
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    def theirs(case: bytes) -> None:
        document = json.loads(case)
        kind = PEFT_TYPE_TO_CONFIG_MAPPING[document["peft_type"]]
        kind.from_peft_type(**PeftConfig.check_kwargs(**document)) if hasattr(PeftConfig, "check_kwargs") else (
            kind.from_peft_type(**document)
        )

    found = sources or SOURCES
    return run(lambda generator: _config(generator, found), read_config, theirs, count, seed)


def _refusal(judge: Callable[[bytes], Any], case: bytes) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judge(case)
    except Exception as error:  # noqa: BLE001  # a library may raise anything
        return f"{type(error).__name__}: {error}"
    return None


def _file(generator: random.Random) -> bytes:
    document, position = {}, 0
    for number in range(generator.randrange(4)):
        shape = [generator.randrange(4) for _ in range(generator.randrange(3))]
        dtype, size = generator.choice([("F32", 4), ("BF16", 2), ("U8", 1), ("F64", 8)])
        for length in shape:
            size *= length
        document[f"t{number}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    if generator.random() < 0.5:
        document["__metadata__"] = {"format": "pt"}
    for _ in range(generator.randrange(3)):
        document = _changed(generator, document)
    text = _spoiled(generator, json.dumps(document).encode())
    length = len(text) + (generator.choice([-1, 1, 8, 1 << 33, 1 << 63]) if generator.random() < 0.05 else 0)
    extra = generator.choice([0, 0, 0, 0, 0, 0, 1, -1]) + position
    return struct.pack("<Q", max(0, length)) + text + bytes(max(0, extra))


def _config(generator: random.Random, sources: list[dict[str, Any]]) -> bytes:
    document: Any = json.loads(json.dumps(generator.choice(sources)))
    for _ in range(generator.randrange(4)):
        document = _changed(generator, document)
    return _spoiled(generator, json.dumps(document).encode())


def _changed(generator: random.Random, value: Any) -> Any:
    """The same with one value somewhere replaced, removed or moved."""
    if isinstance(value, dict) and value and generator.random() < 0.8:
        key = generator.choice(list(value))
        match generator.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {
                    **value,
                    generator.choice(["", "x", "__metadata__", "t0.weight", "r", "peft_type"]): generator.choice(
                        VALUES
                    ),
                }
            case _:
                return {**value, key: _changed(generator, value[key])}
    if isinstance(value, list) and value and generator.random() < 0.5:
        place = generator.randrange(len(value))
        return [*value[:place], _changed(generator, value[place]), *value[place + 1 :]]
    return generator.choice(VALUES)


def _spoiled(generator: random.Random, text: bytes) -> bytes:
    """The same text, or with some bytes replaced, inserted, removed or repeated."""
    if generator.random() < 0.5:
        return text
    for _ in range(generator.randrange(1, 4)):
        place = generator.randrange(len(text) + 1)
        other = min(len(text), place + generator.randrange(12))
        piece = generator.choice(
            [b"", b"-", b"0", b"\\", b'"', b",", b"{}", b"[]", b" ", b"\n", b"\xff", b"e5", text[place:other] * 2]
        )
        text = text[:place] + piece + text[other if generator.random() < 0.5 else place :]
    return text


def main() -> None:
    count = int(sys.argv[1])
    sources = [json.loads(Path(path).read_text("utf-8")) for path in sys.argv[2:]]
    for name, judge in (("headers", lambda: headers(count)), ("configs", lambda: configs(count, sources=sources))):
        found = judge()
        print(f"{name}: {dict(found.cases)}; slowest {found.slowest * 1000:.0f} ms, memory +{found.megabytes:.0f} MiB")
        for reason, times in found.accepted.most_common(20):
            print(f"  accepted here {times} times, refused there: {reason}\n    {found.examples[reason][:200]!r}")


if __name__ == "__main__":
    main()
