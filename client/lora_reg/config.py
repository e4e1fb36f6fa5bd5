"""Settings of the client. Precedence: options, environment, `./.lora-reg.toml`, the user's config folder.

| setting    | variable            | default                       |
|------------|---------------------|-------------------------------|
| server     | LORA_REG_SERVER     | http://127.0.0.1:8750         |
| token      | LORA_REG_TOKEN      | the content of `token_file`   |
| token_file | LORA_REG_TOKEN_FILE | stored by `lora-reg login`    |
| namespace  | LORA_REG_NAMESPACE  | default                       |
| cache      | LORA_REG_CACHE      | $XDG_CACHE_HOME/lora-reg      |
| offline    | LORA_REG_OFFLINE    | false                         |

Neither a token nor the path of one is read from TOML files: a project's file could send it to another server. `lora-reg
login` stores a token in a file that only its owner can read.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from lora_contract.errors import RegistryError
from lora_contract.reference import DEFAULT_NAMESPACE, check_namespace
from lora_reg import credentials

DEFAULT_SERVER: Final = "http://127.0.0.1:8750"
PROJECT_FILE: Final = ".lora-reg.toml"
KEYS: Final = ("server", "namespace", "cache", "offline")
_TRUTH: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """server: origin and path without a trailing slash. token, token_file: at most one is set; without either, requests
    are sent without a token."""

    server: str = DEFAULT_SERVER
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    namespace: str = DEFAULT_NAMESPACE
    cache: Path = Path()
    offline: bool = False

    def bearer(self) -> str | None:
        """Return the token to send with a request. A file is read again each time: Kubernetes renews projected tokens.

        Raises RegistryError `unauthenticated` for a file that cannot be read.
        """
        return self.token if self.token_file is None else read_token(self.token_file)


def load_settings(
    *,
    server: str | None = None,
    token: str | None = None,
    token_file: str | Path | None = None,
    offline: bool | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Load settings from all sources; the first four arguments are options, None if not given.

    folder: of `.lora-reg.toml`; None: the current folder. Raises RegistryError `usage` for an invalid file or value,
    `unauthenticated` for a credentials file that others can read.
    """
    environ = os.environ if environ is None else environ
    config_home = config_folder(environ)
    values: dict[str, Any] = {}
    for file in (config_home / "config.toml", (folder or Path.cwd()) / PROJECT_FILE):
        values.update(_read_toml(file))
    for key in (*KEYS, "token"):
        if text := environ.get(f"LORA_REG_{key.upper()}", "").strip():
            values[key] = text
    flags = {"server": server, "token": token, "offline": offline}
    values.update({key: flag for key, flag in flags.items() if flag is not None})
    if token_file is not None and token is None:
        values.pop("token", None)
    path = token_file or environ.get("LORA_REG_TOKEN_FILE", "").strip()
    stored = credentials.read(config_home)
    url = check_server(str(values.get("server") or stored.current or DEFAULT_SERVER))
    secret = values.get("token")
    return Settings(
        server=url,
        token=secret or (None if path else stored.token(url)),
        token_file=Path(path).expanduser() if path and not secret else None,
        namespace=check_namespace(str(values.get("namespace", DEFAULT_NAMESPACE))),
        cache=Path(values["cache"]).expanduser() if values.get("cache") else cache_folder(environ),
        offline=_truth(values.get("offline", False)),
    )


def config_folder(environ: Mapping[str, str] | None = None) -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config", environ)


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache", environ)


def read_token(path: Path) -> str:
    """Read a token from the first line of a file. Raises RegistryError `unauthenticated`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RegistryError(
            "unauthenticated", f"The token file {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    token = lines[0].strip() if lines else ""
    if not token:
        raise RegistryError("unauthenticated", f"The token file {path} has no token in its first line.")
    return token


def check_server(text: str) -> str:
    """Check a server URL and remove its trailing slash. Raises RegistryError `usage`."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RegistryError(
            "usage", f"{text[:200]!r} is not a server URL; expected http://HOST[:PORT] or https://HOST."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RegistryError(
            "usage",
            f"The server URL of {parts.hostname} contains a user, a query or a fragment.",
            hint="Sign in with `lora-reg login URL`.",
        )
    return text.rstrip("/")


def _xdg(variable: str, fallback: str, environ: Mapping[str, str] | None) -> Path:
    environ = os.environ if environ is None else environ
    home = environ.get(variable, "")
    # The XDG specification says to ignore relative paths.
    root = Path(home) if os.path.isabs(home) else Path(environ.get("HOME") or Path.home()) / fallback
    return root / "lora-reg"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise RegistryError("usage", f"{path} cannot be read: {error}.") from error
    for key in document:
        if key == "token":
            raise RegistryError(
                "usage",
                f"{path} contains a token, which others may read there.",
                hint="Remove it there and use `lora-reg login URL`.",
            )
        if key not in KEYS:
            raise RegistryError("usage", f"{path} sets {key!r}; expected one of {', '.join(KEYS)}.")
    return document


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    try:
        return _TRUTH[str(value).lower()]
    except KeyError as error:
        raise RegistryError("usage", f"offline is {value!r}; expected true or false.") from error
