"""The costs of every kernel with the oldest and the installed Triton, and the committed table of them.

    python -m tests.kernels.ops.costs      write kernels/benchmarks/results/sass.json

Another version of Triton is an environment of its own that comes first on the path of a child; torch and all else are
those of this environment.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import triton
import triton.language as tl

from lora_kernels.ops.all_kernels import variants
from lora_kernels.ops.aot import Cost, Variant, compile_variants
from tests.support.envs import ensure_env

OLDEST: Final = "3.6.0"
INSTALLED: Final = importlib.metadata.version("triton")
ROOT: Final = Path(__file__).parents[3]
TABLE: Final = ROOT / "kernels" / "benchmarks" / "results" / "sass.json"


def chosen(version: str) -> list[Variant]:
    """All variants; with the oldest version those of aligned layouts, in bf16 and float32. The kernels on tiles of any
    layout are slow with each version, and those in fp16 differ from those in bf16 in conversions alone: compiling them
    twice would take half a minute more."""
    if version != OLDEST:
        return variants()
    return [
        variant
        for variant in variants()
        if variant.constants.get("ALIGNED", True) and tl.float16 not in variant.constants.values()
    ]


class Elsewhere:
    """A child that compiles every variant with another Triton, beside this process."""

    def __init__(self, version: str) -> None:
        packages = ensure_env(f"triton-{version}", [f"triton=={version}"]).parent / "lib"
        (packages,) = packages.glob("python*/site-packages")
        path = [str(packages), *(str(ROOT / folder) for folder in (".", "client", "registry", "kernels"))]
        self._version = version
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.ops.costs", "--print", version],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def costs(self) -> dict[str, Cost]:
        said, wrong = self._child.communicate()
        assert not self._child.returncode, wrong[-4000:]
        found = json.loads(said.splitlines()[-1])
        assert found["triton"] == self._version
        return {name: _from_json(cost) for name, cost in found["costs"].items()}


def committed() -> dict[str, dict[str, dict[str, float]]]:
    """Rows of the table by the name of the variant, then by version."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads(TABLE.read_text("utf-8"))
    return found


def row(cost: Cost) -> dict[str, float]:
    """What the table holds of a cost."""
    return {
        "instructions": cost.instructions,
        "registers": cost.registers,
        "spills": cost.spills,
        "shared": cost.shared,
        "exchanges": cost.exchanges,
        "widest": cost.widest,
    }


def _to_json(cost: Cost) -> dict[str, Any]:
    given = {name: getattr(cost, name) for name in Cost.__slots__}
    return given | {"accesses": [[*access, number] for access, number in cost.accesses.items()]}


def _from_json(given: dict[str, Any]) -> Cost:
    accesses = {(kind, size): number for kind, size, number in given["accesses"]}
    return Cost(**given | {"accesses": accesses, "offsets": tuple(given["offsets"])})


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--print"]:
        found = {name: _to_json(cost) for name, cost in compile_variants(chosen(arguments[1])).items()}
        print(json.dumps({"triton": triton.__version__, "costs": found}))
        return
    elsewhere = Elsewhere(OLDEST)
    costs = {INSTALLED: compile_variants(chosen(INSTALLED)), OLDEST: elsewhere.costs()}
    lines = [
        f"  {json.dumps(one.name)}: {{\n"
        + ",\n".join(
            f"    {json.dumps(version)}: {json.dumps(row(costs[version][one.name]))}"
            for version in sorted(costs)
            if one.name in costs[version]
        )
        + "\n  }"
        for one in variants()
    ]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
