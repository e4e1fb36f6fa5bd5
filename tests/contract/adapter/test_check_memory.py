"""A check takes memory in proportion to the header, and little of it: it runs on what strangers send."""

from __future__ import annotations

import tracemalloc

from lora_contract.adapter.check import AdapterFile, check_adapter
from tests.registry.site import adapter_files, fingerprint
from tests.soak.attacks import WEIGHTS, many_tensors

TENSORS = 8_000
# The text of the header, the names and the entries of its tensors, and the order of the modules: 3.3 times the text.
# With the modules of all tensors at once, it was 5.3 times.
MOST = 4


def test_memory_over_the_header():
    weights = many_tensors(TENSORS)
    files = {**adapter_files(5), WEIGHTS: weights}
    base = fingerprint()
    header = len(weights) - 4 * TENSORS
    tracemalloc.start()
    try:
        result = check_adapter(
            [AdapterFile(path, len(content)) for path, content in files.items()],
            lambda path, offset, length: files[path][offset : offset + length],
            base,
            base_aliases=(),
            accept_base=True,
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "module-not-in-base" in {finding.code for finding in result.findings}
    assert peak < MOST * header, f"{peak / header:.2f} times a header of {header} bytes"
