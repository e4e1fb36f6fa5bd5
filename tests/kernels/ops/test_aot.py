"""What kernels cost, from their machine code for the H200: with the oldest and the installed Triton, against the table
of `costs`. Speed cannot be lost unseen, whether by a change of a kernel or of Triton. No GPU is needed."""

from __future__ import annotations

import pytest

from lora_kernels.ops.all_kernels import variants
from lora_kernels.ops.aot import compile_variants
from lora_kernels.ops.dispatch import interpreted
from lora_kernels.ops.merge_low_rank.rows import merge_rows_kernel
from lora_kernels.ops.quantized.kernel import DENSE, FOUR_BIT, INT8
from tests.kernels.ops import costs

COMPILED = [
    pytest.param(variant, version, id=f"{variant.name}-{version}")
    for version in sorted({costs.OLDEST, costs.INSTALLED})
    for variant in costs.chosen(version)
]
WRITE = "python -m tests.kernels.ops.costs writes the table"
# An instruction more or less for a program.
MORE, LESS = 1.01, 0.95


@pytest.fixture(scope="module")
def measured():
    """By version and name: all compiled once."""
    if interpreted():
        pytest.skip("kernels are interpreted in this process")
    elsewhere = costs.Elsewhere(costs.OLDEST) if costs.OLDEST != costs.INSTALLED else None
    found = {costs.INSTALLED: compile_variants(costs.chosen(costs.INSTALLED))}
    return found | ({costs.OLDEST: elsewhere.costs()} if elsewhere else {})


@pytest.mark.parametrize(("variant", "version"), COMPILED)
def test_compiles_without_spills(variant, version, measured):
    cost = measured[version][variant.name]
    assert cost.spills == 0
    assert cost.registers <= 255
    if variant.constants.get("ALIGNED") and "ELEMENT" in variant.constants:
        assert cost.widest >= min(16, _share(variant)), cost.accesses
        assert ("st", 1) not in cost.accesses, "an aligned result is written byte by byte"
        # Codes of 8 bits of a nested absmax: one for each group, whatever the layout.
        assert ("ld", 1) not in cost.accesses or variant.constants.get("NESTED"), "read byte by byte"
    # Offsets of blocks of elements, at which the tensors of a checkpoint may lie past 2^31.
    if variant.offset_bits is None:
        assert cost.offsets == ()
    else:
        assert cost.offsets
        assert set(cost.offsets) <= {"i64", f"i{variant.offset_bits}"}


@pytest.mark.parametrize(("variant", "version"), COMPILED)
def test_costs_what_the_table_says(variant, version, measured):
    known = costs.committed().get(variant.name, {}).get(version)
    if known is None and version not in (costs.OLDEST, _constrained()):
        pytest.skip(f"the table has no costs with Triton {version}")
    assert known, WRITE
    found = costs.row(measured[version][variant.name])
    worse = {name: found[name] for name in ("registers", "spills", "shared", "exchanges") if found[name] > known[name]}
    assert not worse, f"more than {known}"
    assert found["widest"] >= known["widest"]
    assert found["instructions"] <= MORE * known["instructions"]
    assert found["instructions"] >= LESS * known["instructions"], f"the table no longer tells what was gained: {WRITE}"


# Instructions an element that a merge may take, by the end of its variant's name.
AIMS = {
    "bf16, factors bf16, 1 x 16": 6,
    "bf16, factors bf16, 1 x 64": 7,
    "bf16, factors bf16, 4 x 16": 13,
    "bf16, factors bf16, 1 x 16, stats": 13,
    "bf16, factors fp32, 1 x 16": 8,
}


def test_merges_of_aligned_matrices_are_short_and_exchange_nothing(measured):
    merges = [variant for variant in variants() if variant.kernel is merge_rows_kernel]
    for version, costs_of in measured.items():
        for variant in merges:
            if variant.name in costs_of:
                cost = costs_of[variant.name]
                assert (cost.exchanges, cost.shared) == (0, 0), (version, variant.name)
                assert {size for kind, size in cost.accesses if kind == "st"} <= {4, 16}, "results, and statistics"
        for name, most in AIMS.items():
            assert costs_of[f"merge_low_rank {name}"].instructions <= most, (version, name)


def test_the_table_has_no_other_variants():
    assert list(costs.committed()) == [variant.name for variant in variants()], WRITE


def _constrained():
    """The version of Triton of the project's own environment."""
    lines = (costs.ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("triton=="))


def _share(variant):
    """Bytes of W that fall to a thread."""
    constants = variant.constants
    scheme = constants.get("SCHEME", DENSE.value)
    bits = {DENSE.value: constants["ELEMENT"].primitive_bitwidth, INT8.value: 8, FOUR_BIT.value: 4}[scheme]
    return int(variant.elements_per_thread) * bits // 8
