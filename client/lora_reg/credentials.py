"""Tokens by server, in a file that only its owner can read. This module prints and logs none."""

from __future__ import annotations

import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lora_contract.errors import RegistryError
from lora_reg.disk import replace_file

FILE: Final = "credentials.json"


@dataclass(slots=True)
class Credentials:
    """current: the server of the last login; None if there was none."""

    current: str | None = None
    servers: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def token(self, server: str) -> str | None:
        return self.servers.get(server, {}).get("token")

    def is_issued(self, server: str) -> bool:
        """Whether the token of a server came from a sign-in, which also ends it."""
        return self.servers.get(server, {}).get("from") == "sign-in"


def read(folder: Path) -> Credentials:
    """Read the stored tokens; empty if there is no file. Raises RegistryError `unauthenticated`, `usage`."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise RegistryError(
                    "unauthenticated",
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); its tokens are not used.",
                    hint=f"Run `chmod 600 {path}`; if others use this machine, sign in with a new token.",
                )
            document: Any = json.loads(file.read())
        servers = document["servers"]
        return Credentials(document.get("current"), {str(url): dict(entry) for url, entry in servers.items()})
    except (FileNotFoundError, NotADirectoryError):
        return Credentials()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            "usage", f"{path} cannot be read: {type(error).__name__}.", hint="Remove it and sign in again."
        ) from error


def store(folder: Path, server: str, token: str | None, *, issued: bool = False) -> None:
    """Make a server the current one and store its token (None: it needs none). issued: by a sign-in."""
    credentials = read(folder)
    credentials.current = server
    origin = {"from": "sign-in"} if issued else {}
    credentials.servers[server] = {"token": token, **origin} if token else {}
    _write(folder, credentials)


def forget(folder: Path, server: str) -> bool:
    """Remove a server's token. Returns False if none was stored."""
    credentials = read(folder)
    known = credentials.servers.pop(server, None) is not None
    if credentials.current == server:
        credentials.current = None
    if known:
        _write(folder, credentials)
    return known


def _write(folder: Path, credentials: Credentials) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {"current": credentials.current, "servers": credentials.servers}
    data = json.dumps(document, indent=1, sort_keys=True).encode()
    replace_file(folder / FILE, data, staged=folder / f".{FILE}.{secrets.token_hex(6)}", mode=0o600)
