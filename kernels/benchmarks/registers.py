"""Print the table of `docs/kernels.md`: the resources of each variant of each Triton kernel, compiled for an H200.

    python kernels/benchmarks/registers.py

No GPU is needed: registers, spills and shared memory are as reported by ptxas.
"""

from __future__ import annotations

from lora_kernels.ops.all_kernels import variants
from lora_kernels.ops.aot import compile_variant


def main() -> None:
    print("| kernel | registers | spilled bytes | shared bytes | warps | widest access, bytes |")
    print("|---|---|---|---|---|---|")
    for variant in variants():
        cost = compile_variant(variant)
        print(
            f"| {variant.name} | {cost.registers} | {cost.spill_bytes} | {cost.shared} | {variant.config.warps} "
            f"| {max(size for _, size in cost.accesses)} |"
        )


if __name__ == "__main__":
    main()
