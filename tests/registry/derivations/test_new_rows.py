"""New rows of a resized base: what a request can hold."""

from __future__ import annotations

import base64

import msgspec
import pytest

from lora_contract.errors import RegistryError
from lora_contract.vocabulary import MAX_ROWS_BYTES, NewRows, check_size
from lora_contract.wire.operations import ResizeBaseRequest
from lora_registry.app import MAX_BODY


def rows(size: int) -> NewRows:
    return NewRows("lm_head.weight", "F32", base64.b64encode(bytes(size)).decode())


def test_the_most_rows_that_a_job_takes_fit_its_request() -> None:
    most = [rows(MAX_ROWS_BYTES)]
    check_size(most)
    request = ResizeBaseRequest(base="acme/base", vocab=32003, rows=most, to="acme/larger")
    assert len(msgspec.json.encode(request)) < MAX_BODY


def test_more_rows_are_for_this_machine() -> None:
    with pytest.raises(RegistryError, match="a job takes at most") as refused:
        check_size([rows(MAX_ROWS_BYTES // 2 + 4), rows(MAX_ROWS_BYTES // 2)])
    assert refused.value.code == "too-large"
    assert "--local" in (refused.value.hint or "")
