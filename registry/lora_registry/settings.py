"""Every setting of the service: one field, one environment variable, one line.

Read once, in `app` and `cli`, and passed down. `docs/settings.md` lists the same; a test compares them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lora_contract.errors import RegistryError

PREFIX = "LORA_REG_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the service. The variable is the field's name in capitals after `LORA_REG_`.

    data: folder for the database and the blobs of the embedded default, and for what jobs are working on.
    database_url: SQLAlchemy URL; None: SQLite in the data folder.
    storage_url: `s3://bucket/prefix`; None: a folder in the data folder.
    auth: `none` (everybody is an administrator; loopback only) or `token`.
    presign: let clients exchange bytes with the store itself where it can.
    presign_seconds: life of a presigned URL.
    upload_seconds: life of an upload session.
    max_file_bytes: the largest file that a push may hold.
    s3_endpoint_url, s3_region, s3_path_style, s3_checksum, s3_ca_bundle: how boto3 reaches the store; None or empty:
    as boto3 finds them. s3_checksum is boto3's `request_checksum_calculation`.
    lease_seconds: a worker that is silent for so long is taken for dead.
    """

    data: Path = Path("lora-reg-data")
    database_url: str | None = None
    storage_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8750
    auth: str = "none"
    presign: bool = True
    presign_seconds: int = 300
    upload_seconds: int = 24 * 3600
    max_file_bytes: int = 64 * 1024**3
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_path_style: bool = True
    s3_checksum: str = "when_supported"
    s3_ca_bundle: str | None = None
    lease_seconds: float = 30.0
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if self.auth not in ("none", "token"):
            raise RegistryError("usage", f"LORA_REG_AUTH is {self.auth!r}; expected none or token.")
        if self.s3_checksum not in ("when_supported", "when_required"):
            raise RegistryError(
                "usage", f"LORA_REG_S3_CHECKSUM is {self.s3_checksum!r}; expected when_supported or when_required."
            )

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data.resolve() / 'registry.sqlite3'}"

    @property
    def embedded(self) -> bool:
        """True on the embedded default: SQLite, so the worker runs on this machine."""
        return self.resolved_database_url.startswith("sqlite")

    def check_exposure(self) -> None:
        """Refuse to listen beyond loopback without authentication."""
        if self.auth == "none" and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise RegistryError(
                "usage",
                f"The service would listen on {self.host} with no authentication.",
                hint="Set LORA_REG_AUTH=token (`lora-registry token create` makes one), or listen on 127.0.0.1.",
            )


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from a TOML file (`LORA_REG_CONFIG`), then the environment, then `overrides` that are not None.

    Raises RegistryError `usage` for a value that cannot be read and for an unknown key of the file.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {field.name: field for field in fields(Settings)}
    if path := environ.get(PREFIX + "CONFIG"):
        try:
            document = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise RegistryError("usage", f"LORA_REG_CONFIG={path} cannot be read: {error}.") from error
        for key, value in document.items():
            if key not in known:
                raise RegistryError("usage", f"{path} sets {key!r}, which is no setting; see docs/settings.md.")
            values[key] = value
    for name in known:
        if (text := environ.get(PREFIX + name.upper())) not in (None, ""):
            values[name] = text
    values.update({key: value for key, value in overrides.items() if value is not None})
    return Settings(**{name: _convert(name, str(known[name].type), value) for name, value in values.items()})


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, for the processes that `serve` starts."""
    return {
        PREFIX + name.upper(): str(value)
        for name in Settings.__dataclass_fields__
        if (value := getattr(settings, name)) is not None
    }


def _convert(name: str, kind: str, value: Any) -> Any:
    try:
        match kind.removesuffix(" | None"):
            case "Path":
                return Path(value)
            case "bool" if isinstance(value, str):
                return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
            case "int":
                return int(value)
            case "float":
                return float(value)
            case _:
                return value
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError("usage", f"LORA_REG_{name.upper()} is {value!r}; expected a {kind}.") from error
