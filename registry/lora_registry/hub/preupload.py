"""Answer which files of a commit a client should send, and how."""

from __future__ import annotations

import re
from typing import Any, Final

from lora_contract.digest import Digest
from lora_contract.errors import RegistryError
from lora_registry.auth.caller import Caller
from lora_registry.hub import heads
from lora_registry.hub.content import is_left_out

Json = dict[str, Any]

INLINE: Final = 1024 * 1024
"""Files up to this size, in bytes, are sent inside the commit."""

INLINE_ALL: Final = 1024 * 1024 * 1024
"""For huggingface_hub 1 and later, which knows two ways: inside the commit, or Xet, whatever the server can do."""

MAX_FILES: Final = 1000
_CLIENT: Final = re.compile(r"\bhf_hub/(\d{1,4})\.")


def answer(
    caller: Caller, repo_id: str, kind: str, revision: str, request: Json, user_agent: str
) -> tuple[Json, list[str]]:
    """Return the answer, and the by-products of trainers, which the client is told to leave out."""
    path, branch = heads.writable(caller, repo_id), heads.branch_of(revision)
    with caller.ctx.db.read() as session:
        head = heads.read(session, caller, path, kind, branch)
    files = request.get("files")
    if not isinstance(files, list) or len(files) > MAX_FILES:
        raise RegistryError("invalid-request", f"The request names at most {MAX_FILES} files.")
    inline = inline_limit(user_agent)
    result, left_out = [], []
    for file in files:
        name, size = (file.get("path"), file.get("size")) if isinstance(file, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(size, int):
            raise RegistryError("invalid-request", "A file of the request has no path and size.")
        limit = caller.ctx.settings.max_file_bytes
        if size > limit and not is_left_out(name):
            raise RegistryError("too-large", f"{name[:200]} has {size} bytes; the limit is {limit}.")
        mode = "regular" if size <= inline else "lfs"
        if is_left_out(name):
            left_out.append(name)
        item: Json = {"path": name, "uploadMode": mode, "shouldIgnore": is_left_out(name)}
        # With the digest of what is there, clients leave out what has not changed; of other files they compare SHA-1.
        if mode == "lfs" and name in head.files:
            item["oid"] = Digest.parse(head.files[name][0]).hex
        result.append(item)
    return {"files": result}, left_out


def inline_limit(user_agent: str) -> int:
    generation = client_generation(user_agent)
    return INLINE_ALL if generation is not None and generation >= 1 else INLINE


def client_generation(user_agent: str) -> int | None:
    """Return the first number of the version of huggingface_hub; None for other clients."""
    found = _CLIENT.search(user_agent)
    return None if found is None else int(found[1])


def xet() -> RegistryError:
    return RegistryError(
        "unsupported",
        f"This registry takes files of more than {INLINE_ALL >> 30} GiB by LFS, and not by Xet.",
        hint=f"Files of more than {INLINE_ALL >> 30} GiB: set HF_HUB_DISABLE_XET=1 in the environment and push again.",
    )
