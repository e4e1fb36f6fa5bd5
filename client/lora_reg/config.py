"""Settings of the client. Precedence: options, environment, `./.lora-reg.toml`, the user's config folder.

| setting   | variable           | default                       |
|-----------|--------------------|-------------------------------|
| server    | LORA_REG_SERVER    | http://127.0.0.1:8750         |
| token     | LORA_REG_TOKEN     | stored by `lora-reg login`    |
| namespace | LORA_REG_NAMESPACE | default                       |
| cache     | LORA_REG_CACHE     | $XDG_CACHE_HOME/lora-reg      |
| offline   | LORA_REG_OFFLINE   | false                         |

A token is not read from TOML files: `lora-reg login` stores it in a file that only its owner can read.
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
    """server: origin and path without a trailing slash. token None: requests are sent without a token."""

    server: str = DEFAULT_SERVER
    token: str | None = field(default=None, repr=False)
    namespace: str = DEFAULT_NAMESPACE
    cache: Path = Path()
    offline: bool = False


def load_settings(
    *,
    server: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Load settings from all sources; the first three arguments are options, None if not given.

    folder: of `.lora-reg.toml`; None: the current folder. Raises RegistryError `usage` for an invalid file or value,
    `unauthenticated` for a credentials file that others can read.
    """
    environ = os.environ if environ is None else environ
    config_home = config_folder(environ)
    values: dict[str, Any] = {}
    for path in (config_home / "config.toml", (folder or Path.cwd()) / PROJECT_FILE):
        values.update(_read_toml(path))
    for key in (*KEYS, "token"):
        if text := environ.get(f"LORA_REG_{key.upper()}", "").strip():
            values[key] = text
    flags = {"server": server, "token": token, "offline": offline}
    values.update({key: flag for key, flag in flags.items() if flag is not None})
    stored = credentials.read(config_home)
    url = check_server(str(values.get("server") or stored.current or DEFAULT_SERVER))
    return Settings(
        server=url,
        token=values.get("token") or stored.token(url),
        namespace=check_namespace(str(values.get("namespace", DEFAULT_NAMESPACE))),
        cache=Path(values["cache"]).expanduser() if values.get("cache") else cache_folder(environ),
        offline=_truth(values.get("offline", False)),
    )


def config_folder(environ: Mapping[str, str] | None = None) -> Path:
    return _xdg("XDG_CONFIG_HOME", ".config", environ)


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache", environ)


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
