"""Requests a minute: by token and class, with the time to wait, and by address for those without a valid token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lora_contract.errors import RegistryError
from lora_registry.auth.rates import Rates
from tests.registry.site import Site, open_site, problem


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_requests_of_a_minute_come_at_once_and_then_as_they_are_earned() -> None:
    clock = Clock()
    rates = Rates({"reads": 60}, clock=clock)
    for _ in range(60):
        rates.take("a", "reads")
    with pytest.raises(RegistryError) as caught:
        rates.take("a", "reads")
    assert caught.value.facts["retry_after"] == 1
    rates.take("b", "reads")
    rates.take("a", "writes")
    clock.now += 1.0
    rates.take("a", "reads")
    with pytest.raises(RegistryError):
        rates.take("a", "reads")
    clock.now += 3600.0
    for _ in range(60):
        rates.take("a", "reads")
    with pytest.raises(RegistryError):
        rates.take("a", "reads")


def test_a_refused_request_costs_nothing_and_long_waits_are_stated() -> None:
    clock = Clock()
    rates = Rates({"jobs": 2}, clock=clock)
    rates.take("a", "jobs")
    rates.take("a", "jobs")
    for _ in range(5):
        with pytest.raises(RegistryError) as caught:
            rates.take("a", "jobs")
        assert caught.value.facts["retry_after"] == 30
    clock.now += 30.0
    rates.take("a", "jobs")


def test_callers_who_have_earned_all_back_are_forgotten() -> None:
    clock = Clock()
    rates = Rates({"reads": 60}, clock=clock)
    for number in range(10_000):
        rates.take(str(number), "reads")
    clock.now += 60.0
    rates.take("last", "reads")
    assert len(rates._spent) == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    extra = {
        "LORA_REG_AUTH": "token",
        "LORA_REG_READS_PER_MINUTE": "5",
        "LORA_REG_WRITES_PER_MINUTE": "0",
        "LORA_REG_JOBS_PER_MINUTE": "1",
        "LORA_REG_FAILURES_PER_MINUTE": "3",
    }
    with open_site("sqlite", Path(tmp_path_factory.mktemp("rates")), "", extra=extra) as site:
        site.serve()
        yield site


def test_the_service_counts_by_token_and_class(site: Site) -> None:
    with site.connect(site.token("admin")) as one, site.connect(site.token("admin")) as other:
        for path in ("/api/v1/whoami", "/hf/api/models", "/api/v1/repositories", "/api/v1/events", "/api/v1/jobs"):
            assert one.get(path).status_code == 200
        refused = one.get("/api/v1/whoami")
        problem(refused, "rate-limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 12
        assert one.get("/hf/api/models").status_code == 429
        problem(one.post("/api/v1/merges", json={}), "invalid-request")
        problem(one.post("/api/v1/validations", json={}), "rate-limited")
        for _ in range(10):
            problem(one.post("/api/v1/uploads", json={}), "invalid-request")
        assert other.get("/api/v1/whoami").status_code == 200


def test_failures_are_counted_by_address(site: Site) -> None:
    with site.connect("hf_wrong") as wrong, site.connect() as none:
        for client in (wrong, none, wrong):
            problem(client.get("/api/v1/whoami"), "unauthenticated")
        answers: list[httpx.Response] = [wrong.get("/api/v1/whoami"), none.post("/api/v1/merges", json={})]
        answers.append(none.post("/api/v1/token-exchange", json={"token": "a.b.c"}))
        for answer in answers:
            problem(answer, "rate-limited")
    with site.connect(site.token("reader", "ns")) as valid:
        assert valid.get("/api/v1/whoami").status_code == 200
    assert httpx.get(site.url + "/healthz").status_code == 200
