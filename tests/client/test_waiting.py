"""What a job that did not end well raises."""

from __future__ import annotations

import pytest

from lora_contract.errors import ERRORS, RegistryError
from lora_contract.wire.jobs import JobView
from lora_reg.waiting import require_done


def job(**more: str) -> JobView:
    return JobView(id="merge-1", kind="merge", queue="cpu", created_at="", updated_at="", state="failed", **more)


@pytest.mark.parametrize(
    ("hint", "shown"), [("Merge into a finer dtype.", "Merge into a finer dtype."), (None, ERRORS["rejected"].hint)]
)
def test_the_hint_of_a_failed_job_is_that_of_its_error(hint: str | None, shown: str) -> None:
    view = job(error="Only 10% survived.", error_code="rejected", **({"error_hint": hint} if hint else {}))
    with pytest.raises(RegistryError, match="Only 10% survived") as raised:
        require_done(view)
    assert (raised.value.code, raised.value.hint) == ("rejected", shown)


def test_of_a_job_that_crashed_the_log_is_the_hint() -> None:
    with pytest.raises(RegistryError) as raised:
        require_done(job(error="It crashed.", error_code="job-failed", error_hint="Something."))
    assert "lora-reg job logs merge-1" in raised.value.hint
