"""Every setting of the service: one field, one environment variable, one line.

Read once, in `app` and `cli`, and passed down. A test compares them with `docs/settings.md`.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from lora_contract.errors import RegistryError

PREFIX = "LORA_REG_"
DEFAULT_HUB: Final = "https://huggingface.co"
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MIN_PART: Final = 5 * 1024**2
MAX_PART: Final = 5 * 1024**3
"""In bytes: what S3 accepts as a part."""
_LIMITS: Final = (
    *("reads_per_minute", "writes_per_minute", "jobs_per_minute", "failures_per_minute"),
    *("keep_events_days", "keep_decisions_days", "keep_reports_days", "keep_jobs_days"),
    *("keep_progress_days", "keep_idempotency_days"),
)
_POSITIVE: Final = (
    *("presign_seconds", "upload_seconds", "max_file_bytes", "job_memory_bytes", "lease_seconds"),
    *("fsck_bytes", "fsck_rate"),
)


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Settings of the service. The variable is the field's name in capitals after `LORA_REG_`.

    Args:
        data: folder of the database and blobs of the embedded default, and of the jobs' temporary files.
        database_url: SQLAlchemy URL; None: SQLite in the data folder.
        storage_url: `s3://bucket/prefix`, `file:///folder` or a path; None: a folder in the data folder.
        auth: `none` (every caller is an administrator; loopback only) or `token`.
        public_url: where clients reach the service, without a path; of links to further pages. None: the host name of a
            request, if it is loopback or the address that the service listens on; otherwise links have no host.
        presign: let clients transfer bytes directly to and from the store, if the store supports it.
        presign_seconds: lifetime of a presigned URL, less what our clock is behind the store's.
        upload_seconds: lifetime of an upload session, and of what Hub clients staged.
        max_file_bytes: the largest file that a push may contain.
        verified_seconds: a stored file that was not verified for this long is not handed to Hub clients by a presigned
            URL, but through the service, which verifies it.
        gc_seconds: interval of garbage collections by workers; 0: never.
        gc_grace_seconds: how long bytes are kept after nothing needs them; longer than a presigned URL, the longest
            download and the interval of backups.
        gc_orphan_seconds: how long bytes are kept that no row names; longer than any upload or job.
        fsck_seconds: interval at which workers verify the stored bytes that were verified longest ago; 0: never.
        fsck_bytes: how many bytes they read each time. fsck_rate: in MB per second.
        keep_events_days, keep_decisions_days, keep_reports_days, keep_jobs_days: how long events, decisions of gates,
            reports, and jobs that have ended are kept, before they are exported and removed; 0: for ever.
        keep_progress_days: how long the progress of jobs that have ended is kept; 0: for ever.
        keep_idempotency_days: how long the answer to a request with an Idempotency-Key is kept; 0: for ever.
        records_url: where old records are exported to, as storage_url; None: `records/` in the store of the blobs.
        upload_part_bytes: files longer than this are sent in parts of this size, or longer if there were more than
            10,000; at least 5 MiB. A push that was cut off goes on with the parts that are missing.
        reads_per_minute, writes_per_minute, jobs_per_minute: requests of a token, in each API process; 0: no limit.
        failures_per_minute: requests without a valid token from one address, in each API process; 0: no limit.
        hub_endpoints: URLs, separated by spaces, of the Hubs from which workers fetch weights of bases that were
            registered without them; or `none`. None: DEFAULT_HUB if `auth` is none, otherwise none.
        hub_token_file: file with the token for the first of them.
        s3_endpoint_url, s3_region, s3_path_style, s3_checksum, s3_ca_bundle: how boto3 reaches the store; None or
            empty: boto3's own defaults. s3_checksum is boto3's `request_checksum_calculation`.
        preload: import torch and PEFT soon after a worker's start rather than for its first validation.
        job_memory_bytes: the private memory that the process of a job may use; None: no limit.
        lease_seconds: a worker that has not renewed its lease for this long is considered dead.
        oidc_audience: audience that CI and clusters request identity tokens for; one of its own for each registry.
        login_issuer, login_client_id, login_scopes: the OpenID provider at which people sign in, the public client that
            `lora-reg` is there, and what it requests.
        log_level: minimum level that is logged.
    """

    data: Path = Path("lora-reg-data")
    database_url: str | None = None
    storage_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8750
    auth: str = "none"
    public_url: str | None = None
    presign: bool = True
    presign_seconds: int = 900
    upload_seconds: int = 72 * 3600
    max_file_bytes: int = 64 * 1024**3
    verified_seconds: float = 7 * 24 * 3600.0
    gc_seconds: float = 3600.0
    gc_grace_seconds: float = 24 * 3600.0
    gc_orphan_seconds: float = 7 * 24 * 3600.0
    fsck_seconds: float = 3600.0
    fsck_bytes: int = 10 * 1000**3
    fsck_rate: float = 20.0
    keep_events_days: float = 400.0
    keep_decisions_days: float = 400.0
    keep_reports_days: float = 400.0
    keep_jobs_days: float = 90.0
    keep_progress_days: float = 30.0
    keep_idempotency_days: float = 1.0
    records_url: str | None = None
    upload_part_bytes: int = 32 * 1024**2
    hub_endpoints: str | None = None
    hub_token_file: Path | None = None
    reads_per_minute: int = 12_000
    writes_per_minute: int = 3_000
    jobs_per_minute: int = 120
    failures_per_minute: int = 300
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    s3_path_style: bool = True
    s3_checksum: str = "when_supported"
    s3_ca_bundle: str | None = None
    preload: bool = True
    job_memory_bytes: int | None = None
    lease_seconds: float = 30.0
    oidc_audience: str = "lora-registry"
    login_issuer: str | None = None
    login_client_id: str | None = None
    login_scopes: str = "openid profile"
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_level", self.log_level.upper())
        _require_one_of("auth", self.auth, ("none", "token"))
        _require_one_of("s3_checksum", self.s3_checksum, ("when_supported", "when_required"))
        _require_one_of("log_level", self.log_level, LOG_LEVELS)
        if not 0 <= self.port <= 65535:
            raise _invalid("port", self.port, "a port from 0 to 65535")
        if not MIN_PART <= self.upload_part_bytes <= MAX_PART:
            raise _invalid("upload_part_bytes", self.upload_part_bytes, f"a number from {MIN_PART} to {MAX_PART}")
        for name in _LIMITS:
            if not getattr(self, name) >= 0:
                raise _invalid(name, getattr(self, name), "a number, or 0 for no limit")
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise _invalid(name, value, "a number greater than 0")
        if (self.login_issuer is None) != (self.login_client_id is None):
            missing = "login_client_id" if self.login_client_id is None else "login_issuer"
            raise _invalid(missing, None, "a value, since the other of issuer and client id is set")
        if self.database_url is not None:
            _check_database_url(self.database_url)
        for endpoint in self.hubs:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname or {"@", "?", "#"} & set(endpoint):
                raise _invalid("hub_endpoints", endpoint, "URLs such as https://huggingface.co, separated by spaces")
        for name in ("storage_url", "records_url"):
            if (url := getattr(self, name)) is not None:
                _check_storage_url(name, url)
        if self.public_url is not None:
            object.__setattr__(self, "public_url", self.public_url.rstrip("/"))
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc or parts.path:
                raise _invalid("public_url", self.public_url, "a URL such as https://registry.example.com")

    def make_data_folder(self) -> None:
        """Create a missing data folder, for its owner alone.

        Raises RegistryError `usage` if the path is a file, `storage-unavailable` if nothing can be written there.
        """
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            file = next(path for path in (self.data, *self.data.parents) if path.exists())
            raise RegistryError(
                "usage",
                f"The data folder cannot be {self.data}: {file} is a file.",
                hint="Set LORA_REG_DATA or --data to a folder; it is created if it is missing.",
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            with tempfile.TemporaryFile(dir=self.data):
                pass
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> RegistryError:
        return RegistryError(
            "storage-unavailable",
            f"The data folder {self.data} cannot be written to: {error.strerror}.",
            hint="Set LORA_REG_DATA or --data to a folder on a disk with space that this user may write to.",
        )

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data.resolve() / 'registry.sqlite3'}"

    @property
    def embedded(self) -> bool:
        """True if the database is SQLite, so that `serve` also runs a worker."""
        return self.resolved_database_url.startswith("sqlite")

    @property
    def hubs(self) -> tuple[str, ...]:
        """The Hubs that workers may fetch weights from."""
        if self.hub_endpoints is None:
            return (DEFAULT_HUB,) if self.auth == "none" else ()
        if self.hub_endpoints == "none":
            return ()
        return tuple(canonical_endpoint(endpoint) for endpoint in self.hub_endpoints.split())

    def check_exposure(self) -> None:
        """Refuse to listen beyond loopback without authentication."""
        if self.auth == "none" and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise RegistryError(
                "usage",
                f"The service would listen on {self.host} with no authentication.",
                hint="Set LORA_REG_AUTH=token and run `lora-registry token create`, or listen on 127.0.0.1.",
            )


def canonical_endpoint(url: str) -> str:
    """Return the one spelling of a Hub's URL: the scheme and the host in lower case, no slash at the end."""
    parts = urlsplit(url)
    return parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower()).geturl().rstrip("/")


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> ServiceSettings:
    """Load settings from a TOML file (`LORA_REG_CONFIG`), then the environment, then `overrides` that are not None.

    Raises RegistryError `usage` for an invalid value and for an unknown key in the file.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    known = {field.name: field for field in fields(ServiceSettings)}
    if path := environ.get(PREFIX + "CONFIG"):
        try:
            document = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise RegistryError("usage", f"LORA_REG_CONFIG={path} cannot be read: {error}.") from error
        for key, value in document.items():
            if key not in known:
                raise RegistryError(
                    "usage",
                    f"{path} sets {key!r}, which is not a setting.",
                    hint="docs/settings.md lists all settings.",
                )
            values[key] = value
    for name in known:
        if (text := environ.get(PREFIX + name.upper())) not in (None, ""):
            values[name] = text
    values.update({key: value for key, value in overrides.items() if value is not None})
    return ServiceSettings(**{name: _convert(name, str(known[name].type), value) for name, value in values.items()})


def environment(settings: ServiceSettings) -> dict[str, str]:
    """Return the settings as environment variables, for the processes that `serve` starts."""
    return {
        PREFIX + name.upper(): str(value)
        for name in ServiceSettings.__dataclass_fields__
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
        raise _invalid(name, value, _KINDS[kind.removesuffix(" | None")]) from error


_KINDS: Final = {"Path": "a path", "bool": "true or false", "int": "a whole number", "float": "a number"}


def _invalid(name: str, value: object, expected: str) -> RegistryError:
    return RegistryError(
        "usage",
        f"{PREFIX}{name.upper()} is {str(value)!r}; expected {expected}.",
        hint="docs/settings.md lists all settings.",
    )


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _invalid(name, value, f"{', '.join(allowed[:-1])} or {allowed[-1]}")


def _check_database_url(url: str) -> None:
    """Require a supported database and driver. The URL may contain a password and is not printed."""
    scheme = url.partition(":")[0]
    if scheme not in ("sqlite", "postgresql+psycopg") or "://" not in url:
        raise RegistryError(
            "usage",
            "LORA_REG_DATABASE_URL "
            + (f"begins with {scheme}://" if "://" in url else "is not a URL")
            + "; expected sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE.",
            hint="Write postgresql+psycopg:// for PostgreSQL: the part after + names the driver."
            if scheme.startswith("postgres")
            else "Leave it unset to use SQLite in the data folder.",
        )


def _check_storage_url(name: str, url: str) -> None:
    parts = urlsplit(url)
    known = parts.netloc != "" if parts.scheme == "s3" else parts.scheme == "file" or "://" not in url
    if not known:
        raise RegistryError(
            "usage",
            f"{PREFIX}{name.upper()} is {url!r}; expected s3://BUCKET/PREFIX, file:///FOLDER or a path.",
            hint="Leave it unset to store blobs in the data folder."
            if name == "storage_url"
            else "Leave it unset to export records into the store of the blobs.",
        )
