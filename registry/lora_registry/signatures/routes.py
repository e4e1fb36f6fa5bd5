"""Routes of signatures."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, Response, Router
from litestar.params import QueryParameter

from lora_contract.wire.signatures import SignatureList, SignatureView, SignRequest
from lora_registry.auth.caller import Caller
from lora_registry.http.answers import reply
from lora_registry.http.handlers import JSONBody, Limit, Text, get, post
from lora_registry.repositories.paths import VersionPath
from lora_registry.signatures import service as signatures

R = Request[Any, Any, Any]
SIGNATURES = "/{namespace:str}/{name:str}/versions/{selector:str}/signatures"


@post(SIGNATURES, summary="Add a signature of a version", status_code=200)
def add_signature(
    request: R,
    caller: Caller,
    version: VersionPath,
    data: JSONBody[SignRequest],
) -> Response[SignatureView]:
    return reply(request, signatures.add(caller, version, data))


@get(SIGNATURES, summary="List the signatures of a version; by key or format")
def list_signatures(
    request: R,
    caller: Caller,
    version: VersionPath,
    key: Text = None,
    signature_format: Annotated[str | None, QueryParameter(name="format")] = None,
    cursor: Text = None,
    limit: Limit = 100,
) -> Response[SignatureList]:
    found = signatures.list_all(caller, version, key=key, signature_format=signature_format, cursor=cursor, limit=limit)
    return reply(request, found)


router = Router("/repositories", tags=["signatures"], route_handlers=[add_signature, list_signatures])
