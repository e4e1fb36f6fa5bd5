"""Refuse NUL characters: JSON and URLs can contain them, PostgreSQL cannot store them."""

from __future__ import annotations

import re
from typing import Any, Final

from litestar import Request

from lora_contract.errors import RegistryError

_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


async def refuse_nul_in_url(request: Request[Any, Any, Any]) -> None:
    """Raise `invalid-request` if the path or the query contains a NUL character."""
    if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
        raise RegistryError("invalid-request", "The URL contains a NUL character.")


async def refuse_nul_in_body(request: Request[Any, Any, Any]) -> None:
    """Raise `invalid-request` if the URL or a JSON body, where NUL is escaped, contains a NUL character."""
    await refuse_nul_in_url(request)
    if _ESCAPED_NUL.search(await request.body()):
        raise RegistryError("invalid-request", "A string of the body contains a NUL character.")
