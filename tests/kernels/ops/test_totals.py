"""What the programs of a launch found, added up for each job."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_kernels.ops.configs import TOTALS
from lora_kernels.ops.totals import totals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_job_gets_the_sums_and_the_largest_of_its_own_programs(dtype, device):
    counts = (2 * TOTALS.columns + 5, 0, 1, TOTALS.columns)
    values = np.random.default_rng(0).random((sum(counts), 3))
    partials = torch.from_numpy(values).to(dtype).to(device)
    found = totals(partials, counts, maximum=1)
    parts = np.split(partials.cpu().double().numpy(), np.cumsum(counts)[:-1])
    for row, part in zip(found.tolist(), parts, strict=True):
        assert row == pytest.approx([part[:, 0].sum(), part[:, 1].max(initial=0.0), part[:, 2].sum()], rel=1e-14)
    assert torch.equal(found, totals(partials, counts, maximum=1))


def test_what_is_not_finite_stays_so(device):
    partials = torch.tensor([[1.0, float("inf"), 2.0], [float("nan"), 1.0, 3.0]], device=device)
    (row,) = totals(partials, (2,), maximum=1).tolist()
    assert np.isnan(row[0])
    assert row[1:] == [float("inf"), 5.0]


def test_no_jobs_are_no_rows():
    assert totals(torch.empty((0, 3)), (), maximum=1).tolist() == []
