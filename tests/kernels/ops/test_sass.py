"""How machine code is read: its loops and accesses. Reading real code is `test_aot.py`'s."""

from __future__ import annotations

from lora_kernels.ops import sass
from lora_kernels.ops.sass import Instruction


def code(*lines: tuple[str, int | None]) -> list[Instruction]:
    return [Instruction(16 * place, name, target) for place, (name, target) in enumerate(lines)]


# Two loops one after another, the second with one inside; addresses are 16 apart.
KERNEL = code(
    ("LDC", None),
    ("IADD3", None),
    ("BRA", 16),
    ("LDG.E.128", None),
    ("LDS", None),
    ("BRA", 64),
    ("STG.E.U16", None),
    ("BRA", 48),
    ("EXIT", None),
)


def test_the_main_loop_is_the_longest_of_the_outermost():
    run = sass.executed(KERNEL, steps=4)
    assert [one.name for one in run.step] == ["LDG.E.128", "LDS", "BRA", "STG.E.U16", "BRA"]
    assert len(run.once) == 4
    assert run.inner == run.step


def test_all_is_executed_once_if_there_is_no_main_loop():
    run = sass.executed(KERNEL, steps=1)
    assert (len(run.once), run.step) == (len(KERNEL), ())
    assert run.inner == run.once


def test_loops_that_share_an_end_or_overlap_are_one():
    assert sass._outermost(code(("A", None), ("B", None), ("BRA", 16), ("BRA", 0))) == [(0, 48)]
    assert sass._outermost(code(("A", None), ("B", None), ("BRA", 0), ("BRA", 16))) == [(0, 48)]


def test_accesses_by_bytes():
    found = sass.accesses([*KERNEL, Instruction(0, "LDG.E", None), Instruction(0, "STG.E.EF.64", None)])
    assert found == {("ld", 16): 1, ("st", 2): 1, ("ld", 4): 1, ("st", 8): 1}
    assert sass.count(KERNEL, "LDS", "BAR") == 1


def test_a_listing_with_predicates_and_conditions():
    listing = """
        .headerflags    @"x"
        /*0000*/              @!UP0 LDG.E R2, desc[UR16][R6.64] ;
        /*0010*/                   BRA.U !UP0, 0x0 ;
        /*0020*/              @P5 BRA 0x20;
    """
    found = [(name, sass._target(name, operands)) for _, name, operands in sass._LINE.findall(listing)]
    assert found == [("LDG.E", None), ("BRA.U", 0), ("BRA", 32)]
