"""The plan of a merge as it is checkpointed between its step and the children that follow."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")

from lora_kernels.checkpoint.folders import read_adapter, read_base  # noqa: E402
from lora_kernels.merging import plan_merge  # noqa: E402
from lora_kernels.types.table import ROOMS  # noqa: E402
from lora_registry.worker.children.merge import pack, unpack  # noqa: E402
from tests.kernels.types.cases import adapter_folder, base_folder  # noqa: E402
from tests.kernels.types.test_types import CASES  # noqa: E402


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
def test_a_plan_of_each_type_comes_back_as_it_was(tmp_path: Path) -> None:
    seen = set()
    for number, case in enumerate(CASES):
        kind = case.config().peft_type
        if kind in seen:
            continue
        seen.add(kind)
        base = read_base(base_folder(case, tmp_path / f"base-{number}", "F32"))[0]
        plan = plan_merge(base, [read_adapter(adapter_folder(case, tmp_path / f"adapter-{number}", "F32"))])
        assert any(tensor.deltas for tensor in plan.shards[0].tensors)
        assert unpack(pack(plan)) == plan, case.name
    assert len(seen) >= 20
    assert {kind.value for kind in seen} <= set(ROOMS)
    msgspec.json.schema(type(plan))
