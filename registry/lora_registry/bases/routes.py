"""Routes of aliases and fingerprints, which only bases have."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, Router

from lora_contract.base import BaseFingerprint
from lora_contract.digest import Digest
from lora_contract.wire.repositories import AliasRequest, RepositoryView
from lora_registry.auth.caller import Caller
from lora_registry.bases import service
from lora_registry.http.answers import matches, reply
from lora_registry.http.handlers import JSONBody, get, put
from lora_registry.repositories.paths import RepositoryPath, VersionPath

R = Request[Any, Any, Any]
REPO = "/{namespace:str}/{name:str}"


@put(REPO + "/aliases", summary="Add aliases to a base")
def add_aliases(
    request: R,
    caller: Caller,
    repository: RepositoryPath,
    data: JSONBody[AliasRequest],
) -> Response[RepositoryView]:
    return reply(request, service.add_aliases(caller, repository, data.aliases))


@get(REPO + "/versions/{selector:str}/fingerprint", summary="Show the fingerprint of a base version")
def show_fingerprint(
    request: R,
    caller: Caller,
    version: VersionPath,
) -> Response[BaseFingerprint]:
    body = service.fingerprint(caller, version)
    headers = {"ETag": f'"{Digest.of(body).hex}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]
    return Response(body, media_type="application/json", headers=headers)  # type: ignore[arg-type]


router = Router("/repositories", tags=["catalog"], route_handlers=[add_aliases, show_fingerprint])
