"""Handlers of requests that change something. The caller is known, and may do it, before a body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import msgspec
from litestar import Request, Response

from lora_contract import decoding
from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.auth.guards import caller_of, count_unknown
from lora_registry.context import Context
from lora_registry.http.admission import own_url
from lora_registry.http.answers import reply
from lora_registry.http.bodies import batches
from lora_registry.http.texts import check_json
from lora_registry.hub import commits, errors, heads, preupload, repos, uploads
from lora_registry.hub.paths import Call, Verb
from lora_registry.push.routes import receive_body

R = Request[Any, Any, Any]
Json = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")

MAX_JSON: Final = 4 * 1024 * 1024
"""Bytes of a JSON body: of the README that is checked, or of the list of files of a commit."""

_WRITERS: Final = anyio.CapacityLimiter(16)


async def create_repo(request: R, ctx: Context, _call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    path, kind, created = await _run(repos.create, caller, await read_json(request))
    body = {"url": _page(request, kind, str(path)), "name": str(path), "id": str(path)}
    if not created:
        body["error"] = f"{path} exists already."
    headers = {} if created else {"X-Error-Message": errors.header_text(body["error"])}
    return reply(request, body, status=200 if created else 409, headers=headers)


async def delete_repo(request: R, ctx: Context, _call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(repos.delete, caller, await read_json(request))
    return reply(request, {"success": True})


async def check_card(request: R, ctx: Context, _call: Call) -> Response[Any]:
    """Accept any README: what it says of the model is not used."""
    await _caller(request, ctx)
    await read_json(request)
    return reply(request, {"errors": [], "warnings": []})


async def tell_modes(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(heads.writable, caller, call.repo)
    body = await read_json(request)
    agent = request.headers.get("user-agent", "")
    answer, left_out = await _run(preupload.answer, caller, call.repo, call.kind, call.revision, body, agent)
    long = [file["path"] for file in answer["files"] if file["uploadMode"] == "lfs" and not file["shouldIgnore"]]
    # Clients do not print the answer of the request for Xet, which those that have it send next.
    hint = preupload.xet().hint if long and (preupload.client_generation(agent) or 0) >= 1 else ""
    return reply(request, answer, headers=_warning(left_out, hint))


async def commit(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    incoming = await _run(commits.begin, caller, call.repo, call.kind, call.revision)
    if request.query_params.get("create_pr", "") in ("1", "true"):
        raise RegistryError("unsupported", "This registry has no pull requests.", hint="Commit to main or to a branch.")
    try:
        async for data in batches(request):
            await _run(incoming.feed, data)
        done = await _run(incoming.finish)
    finally:
        with anyio.CancelScope(shield=True):
            await _run(incoming.close)
    answer = {
        "success": True,
        "commitOid": done.commit,
        "commitUrl": f"{_page(request, call.kind, str(incoming.path))}/commit/{done.commit}",
        "hookOutput": "" if done.number is None else f"{incoming.path}:v{done.number}",
    }
    return reply(request, answer, headers=_warning(done.left_out))


async def add_tag(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(heads.writable, caller, call.repo)
    body = await read_json(request)
    tag, message = body.get("tag"), body.get("message")
    if not isinstance(tag, str):
        raise RegistryError("invalid-request", "The request names no tag.")
    await _run(repos.add_tag, caller, call.repo, call.kind, call.revision, tag, str(message or ""))
    return reply(request, {})


async def remove_tag(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(repos.remove_tag, caller, call.repo, call.kind, call.revision)
    return reply(request, {})


async def add_branch(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(heads.writable, caller, call.repo)
    start = (await read_json(request)).get("startingPoint")
    await _run(repos.add_branch, caller, call.repo, call.kind, call.revision, str(start or "main"))
    return reply(request, {})


async def remove_branch(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(repos.remove_branch, caller, call.repo, call.kind, call.revision)
    return reply(request, {})


async def refuse_xet(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    await _run(heads.writable, caller, call.repo)
    raise preupload.xet()


async def lfs_batch(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    path = await _run(heads.writable, caller, call.repo)
    body = await read_json(request)
    here, repo = f"{_host(request)}/hf", f"{_url(request, call.kind, str(path))}.git"
    answer = await _run(uploads.batch, caller, path, body, own_url=here, repo_url=repo)
    # It holds URLs that are secrets until they expire.
    return reply(request, answer, headers={"Cache-Control": "no-store"})


async def lfs_verify(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller = await _caller(request, ctx)
    path = await _run(heads.writable, caller, call.repo)
    body = await read_json(request)
    oid, size = body.get("oid"), body.get("size")
    if not isinstance(oid, str) or not isinstance(size, int):
        raise RegistryError("invalid-request", "The request has no oid and size.")
    await _run(uploads.verify, caller, path, Digest.parse(f"sha256:{oid}"), size)
    return reply(request, {})


async def lfs_send(request: R, ctx: Context, call: Call) -> Response[Any]:
    """Receive a file, or a part of one, that is sent without a token to a secret URL."""
    caller, upload_id = await _sender(request, ctx, call)
    digest = Digest.parse(f"sha256:{call.digest}")
    reception = await _run(uploads.receive, caller, upload_id, digest, call.part or None)
    await receive_body(request, reception)
    # Clients repeat the ETags of parts when they complete a file.
    return Response(b"", status_code=200, headers={"ETag": f'"{call.digest[:32]}-{call.part}"'})


async def lfs_complete(request: R, ctx: Context, call: Call) -> Response[Any]:
    caller, upload_id = await _sender(request, ctx, call)
    await read_json(request)
    await _run(uploads.complete, caller, upload_id, Digest.parse(f"sha256:{call.digest}"))
    return reply(request, {})


async def _sender(request: R, ctx: Context, call: Call) -> tuple[Caller, str]:
    try:
        return await _run(uploads.sender, ctx, call.secret)
    except RegistryError:
        count_unknown(request)
        raise


HANDLERS: Final[dict[tuple[Verb, str], Callable[[R, Context, Call], Awaitable[Response[Any]]]]] = {
    ("create-repo", "POST"): create_repo,
    ("delete-repo", "DELETE"): delete_repo,
    ("check-card", "POST"): check_card,
    ("preupload", "POST"): tell_modes,
    ("commit", "POST"): commit,
    ("tag", "POST"): add_tag,
    ("tag", "DELETE"): remove_tag,
    ("branch", "POST"): add_branch,
    ("branch", "DELETE"): remove_branch,
    ("xet", "GET"): refuse_xet,
    ("lfs-batch", "POST"): lfs_batch,
    ("lfs-verify", "POST"): lfs_verify,
    ("lfs-send", "PUT"): lfs_send,
    ("lfs-send", "POST"): lfs_complete,
}


async def serve(request: R, ctx: Context, call: Call) -> Response[Any]:
    """Handle a request that changes something; its errors tell Hub clients our code."""
    if call.channel is not None:
        raise RegistryError(
            "method-not-allowed",
            f"The channel {call.channel} can only be read.",
            hint="Write with HF_ENDPOINT=…/hf, without /channels/….",
        )
    if call.kind == "other":
        raise RegistryError("unsupported", "This registry has models and datasets, and nothing else of the Hub.")
    try:
        return await HANDLERS[call.verb, request.method](request, ctx, call)
    except RegistryError as error:
        error.facts.setdefault("hub", error.code)
        raise


async def read_json(request: R, limit: int = MAX_JSON) -> Json:
    """Read a JSON object. Raises `too-large`, `invalid-request`."""
    body = await read_body(request, limit)
    await _run(check_json, body)
    try:
        return decoding.decode(body or b"{}", Json)
    except msgspec.MsgspecError as error:
        raise RegistryError("invalid-request", "The body is not a JSON object.") from error


async def read_body(request: R, limit: int) -> bytes:
    """Read a body of at most `limit` bytes. Raises `too-large`."""
    parts, length = [], 0
    async for data in batches(request):
        length += len(data)
        if length > limit:
            raise RegistryError("too-large", f"The body has more than {limit} bytes.")
        parts.append(data)
    return b"".join(parts)


async def _caller(request: R, ctx: Context) -> Caller:
    caller = await _run(caller_of, request, ctx)
    caller.require_signed_in()
    return caller


async def _run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=_WRITERS)


def _host(request: R) -> str:
    """The beginning of URLs in answers to writes, which nobody else receives and no cache keeps: as the client wrote
    it, if nothing else is configured."""
    return own_url(request) or f"{request.url.scheme}://{request.headers.get('host', '')}"


def _url(request: R, kind: str, repo: str) -> str:
    return f"{_host(request)}/hf/{'datasets/' if kind == 'dataset' else ''}{repo}"


def _page(request: R, kind: str, repo: str) -> str:
    """What a client takes the id of a repository from: a URL. huggingface_hub 0.x takes it from a bare id too, and not
    from a URL of an endpoint with a path."""
    url = _url(request, kind, repo)
    old = preupload.client_generation(request.headers.get("user-agent", "")) == 0
    return url.partition("/hf/")[2] if old else url


def _warning(left_out: list[str] | tuple[str, ...], hint: str = "") -> dict[str, str]:
    """Clients print it: the by-products of trainers that are not part of a version, and a hint."""
    texts = [hint] if hint else []
    if left_out:
        texts.append("Left out: " + ", ".join(sorted(left_out)[:5]) + (", ..." if len(left_out) > 5 else ""))
    topic = "large files" if hint else "left out"
    return {"X-HF-Warning": errors.header_text(f"{topic}; {' '.join(texts)}")} if texts else {}
