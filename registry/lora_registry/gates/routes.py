"""Routes of validations, policies, gates, approvals and promotions."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.wire.gates import (
    ApprovalView,
    ApproveRequest,
    GateRequest,
    GateView,
    PromoteRequest,
    PromotionView,
    ValidateRequest,
)
from lora_contract.wire.jobs import JobView
from lora_registry.auth.caller import Caller
from lora_registry.gates import approvals, decisions, validations
from lora_registry.http.answers import reply
from lora_registry.http.handlers import IdempotencyKey, JSONBody, post
from lora_registry.http.idempotency import once
from lora_registry.repositories.paths import RepositoryPath

R = Request[Any, Any, Any]
REPO = "/repositories/{namespace:str}/{name:str}"


@post("/validations", summary="Validate an adapter on its base, by a job", status_code=202, starts_job=True)
def submit_validation(
    request: R,
    caller: Caller,
    data: JSONBody[ValidateRequest],
) -> Response[JobView]:
    view = validations.submit(caller, data)
    return reply(request, view, status=200 if view.state == "done" else 202)


@post(REPO + "/gates", summary="Check whether a tag may move to a version", status_code=200)
def ask_gate(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    data: JSONBody[GateRequest],
) -> Response[GateView]:
    view = decisions.gate(caller, repository, data)
    return reply(request, view, status=202 if view.allowed is None else 200)


@post(REPO + "/approvals", summary="Approve a version for a tag", status_code=200)
def approve(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    data: JSONBody[ApproveRequest],
) -> Response[ApprovalView]:
    return reply(request, approvals.approve(caller, repository, data))


@post(REPO + "/promotions", summary="Gate a version and move the tag to it", status_code=200)
def promote(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    data: JSONBody[PromoteRequest],
    idempotency_key: IdempotencyKey = None,
) -> Response[PromotionView]:
    def run() -> tuple[int, PromotionView]:
        view = decisions.promote(caller, repository, data)
        return 200 if view.tag is not None else 202, view

    status, view = once(caller, idempotency_key, (request.url.path, data), PromotionView, run)
    return reply(request, view, status=status)


router = Router(
    "/",
    tags=["gates"],
    route_handlers=[submit_validation, ask_gate, approve, promote],
)
