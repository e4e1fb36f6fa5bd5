"""The service against its own OpenAPI document: whatever is sent, no 5xx, and no answer that is not documented."""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lora_contract import decoding
from tests.registry.site import Site, problem

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
EXAMPLES = int(os.environ.get("LORA_REG_TEST_EXAMPLES", "12"))
"""Of each operation; 40 and more are for a change of the service's routes."""
SAMPLES: dict[str, str] = {
    "namespace": "fuzzed",  # of its own: quotas and visibility are set too
    "name": "fuzzed",
    "selector": "v1",
    "tag": "prod",
    "path": "adapter_config.json",
}


@pytest.mark.parametrize("known", [False, True], ids=["any-path", "existing-path"])
def test_the_service_answers_as_its_document_says(site: Site, known: bool) -> None:
    site.pushed("fuzzed", "fuzzed", 1, tags=["prod"])
    document = site.client.get("/schema/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=site.url)
    failures: dict[str, str] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if known and (not operation.path_parameters or operation.method.upper() == "DELETE"):
            continue
        _try(site, operation, known, failures)
    assert not failures


def _try(site: Site, operation: Any, known: bool, failures: dict[str, str]) -> None:
    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        if known:
            case.path_parameters = {key: SAMPLES.get(key, value) for key, value in (case.path_parameters or {}).items()}
        if case.query and "wait" in case.query:
            case.query["wait"] = 0
        response = case.call(session=None, timeout=30)
        try:
            case.validate_response(response, checks=list(CHECKS))
        except (AssertionError, FailureGroup) as error:
            text = "; ".join(str(e) for e in getattr(error, "exceptions", [error]))
            failures[f"{operation.label} {response.status_code}"] = f"{text[:600]} {response.text[:200]!r}"

    run()


def test_structs_are_complete_before_the_first_request(site: Site) -> None:
    wire = [kind for kind in msgspec.Struct.__subclasses__() if kind.__module__.startswith("lora_contract.wire.")]
    assert wire
    assert not [kind for kind in wire if kind not in decoding._decoders]


# What it found, and its kin, by hand


def test_nul_characters(site: Site) -> None:
    path = site.repository()
    for method, url, body in (
        ("PUT", f"{path}/versions/v1/yank", {"reason": "a\0b"}),
        ("PUT", f"{path}/tags/t", {"target": "v1", "reason": "\0"}),
        ("PUT", f"{path}/tags/t", {"target": "v1\0"}),
        ("PUT", f"{path}/aliases", {"aliases": ["\0"]}),
        ("GET", f"{path}/history?tag=%00", None),
        ("GET", f"{path}/versions/%00", None),
        ("GET", f"{path}/tags/a%00b", None),
        ("GET", f"{path}/versions/v1/files/a%00b", None),
        ("GET", "/api/v1/uploads/%00", None),
        ("GET", "/api/v1/jobs/%00", None),
        ("GET", "/api/v1/jobs?kind=%00", None),
        ("GET", "/api/v1/repositories?namespace=%00", None),
        ("POST", "/api/v1/uploads/%00/blobs/sha256:" + "0" * 64 + "/complete", None),
        ("PUT", "/api/v1/uploads/%00/blobs/sha256:" + "0" * 64, None),
    ):
        answer = site.client.request(method, url, json=body)
        problem(answer, "invalid-request")
    fine = site.client.put(f"{path}/versions/v1/yank", json={"reason": "the text \\u0000, not the character"})
    assert fine.status_code == 200
    assert fine.json()["yanked"] == "the text \\u0000, not the character"


def test_odd_texts_are_kept_as_they_are(site: Site) -> None:
    path = site.repository()
    for text in ("", "ä\u202e\U0001f600\ufeff", "'; drop table version; --", "%s %(x)s", "x" * 4000):
        answer = site.client.put(f"{path}/tags/odd", json={"target": "v1", "reason": text})
        assert answer.status_code == 200
        assert site.client.put(f"{path}/versions/v1/yank", json={"reason": text}).json()["yanked"] == text


def test_the_longest_names(site: Site) -> None:
    namespace, name, tag = "n" * 96, "a" * 64, "t" * 128
    assert site.push(namespace, name, 1, tags=[tag]).status_code in (200, 201)
    subjects = {event["subject"] for event in site.events(f"{namespace}/{name}")}
    assert f"{namespace}/{name}:{tag}" in subjects


def test_wrong_methods_say_which_are_right(site: Site) -> None:
    answer = site.client.post("/api/v1/repositories")
    problem(answer, "method-not-allowed")
    assert "GET" in answer.headers["allow"]
    problem(site.client.patch(f"{site.repository()}/tags/x"), "method-not-allowed")
    problem(site.client.get("/api/v1/nowhere"), "not-found")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e9", "x"])
def test_waits_that_are_no_waits(site: Site, value: str) -> None:
    job = site.push("ns", "waits", 1).json()["job"] or site.client.get("/api/v1/jobs").json()["items"][0]["id"]
    answer = site.client.get(f"/api/v1/jobs/{job}/progress", params={"wait": value}, timeout=5)
    problem(answer, "invalid-request")


def test_cursors_of_other_lists(site: Site) -> None:
    for cursor in ("x", "W10", "WzFd", "AAAA", "é", "WyJhIl0", "WzE4NDQ2NzQ0MDczNzA5NTUxNjE2XQ"):
        for path in ("repositories", "jobs"):
            problem(site.client.get(f"/api/v1/{path}", params={"cursor": cursor}), "invalid-request")
    for limit in ("0", "1001", "-1", "x", "99999999999999999999"):
        problem(site.client.get("/api/v1/repositories", params={"limit": limit}), "invalid-request")
