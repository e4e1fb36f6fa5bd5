"""A share of `fuzz`, the same cases each time: nothing that the libraries refuse is accepted, and nothing crashes."""

from __future__ import annotations

import pytest

from tests.contract import fuzz


@pytest.mark.parametrize("judge", [fuzz.headers, fuzz.configs])
def test_nothing_is_accepted_that_a_library_refuses(judge) -> None:
    found = judge(500)
    assert not found.accepted, found.examples
    assert found.cases["accepted here, accepted there"] > 20
    assert found.megabytes < 64
