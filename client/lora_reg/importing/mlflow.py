"""Adapters of an MLflow model registry, by its REST API: no package of MLflow is needed.

Each version of a registered model becomes a version, in the order of their numbers. Aliases become tags, and the run's
parameters and last metrics become metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from lora_contract import canonical, reference
from lora_contract.errors import RegistryError
from lora_reg.config import check_server
from lora_reg.importing.folders import FolderSource
from lora_reg.importing.grouping import group
from lora_reg.importing.items import Item, Opened, Source, SourceFile, Unreadable, listing_digest
from lora_reg.importing.s3 import BucketSource
from lora_reg.transport import Transport

_API: Final = "/api/2.0/mlflow"
_FILES: Final = "/api/2.0/mlflow-artifacts/artifacts"
_MAX_ANSWER: Final = 64 << 20
_PAIRS: Final = 48
"""Of the 64 pairs of metadata that a version may have."""
_MAX_VALUE: Final = 4096
_DEPTH: Final = 6


class MlflowSource:
    """name: of one registered model; None: all of them."""

    def __init__(self, endpoint: str, name: str | None, token: str | None, *, scheme: str = "Bearer") -> None:
        self.transport = Transport(endpoint, token, scheme=scheme)
        self.host, self.name = urlsplit(endpoint).netloc, name
        # Another machine's server has no say in which folders of this one are read.
        self._here = urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1")
        self._others: dict[str, Source] = {}

    def items(self) -> Iterator[Item | Unreadable]:
        for model in self._models():
            aliases: dict[str, list[str]] = {}
            for entry in model.get("aliases", []):
                aliases.setdefault(str(entry.get("version")), []).append(str(entry.get("alias")))
            versions = self._versions(model["name"])
            for version in sorted(versions, key=lambda item: int(item["version"])):
                where = f"mlflow:{model['name']}/{version['version']}"
                try:
                    yield self._item(where, model["name"], version, aliases.get(str(version["version"]), []))
                except RegistryError as error:
                    if error.code in ("unavailable", "rate-limited"):
                        raise
                    yield Unreadable(where, error)

    def _models(self) -> Iterator[dict[str, Any]]:
        if self.name is not None:
            found = self._get(f"{_API}/registered-models/get", {"name": self.name}, f"model {self.name}")
            yield found["registered_model"]
            return
        yield from self._pages(f"{_API}/registered-models/search", {}, "registered_models")

    def _versions(self, name: str) -> list[dict[str, Any]]:
        quoted = name.replace("'", "\\'")
        return list(self._pages(f"{_API}/model-versions/search", {"filter": f"name='{quoted}'"}, "model_versions"))

    def _item(self, where: str, name: str, version: Mapping[str, Any], aliases: list[str]) -> Item:
        number = str(version["version"])
        asked = {"name": name, "version": number}
        uri = self._get(f"{_API}/model-versions/get-download-uri", asked, where)["artifact_uri"]
        files = tuple(self._files(str(uri), where))
        found = group(files)
        # The model flavours of MLflow keep PEFT's folder below the model's.
        if len(found) != 1:
            raise RegistryError(
                "not-found",
                f"{where} holds {len(found)} folders with an adapter, expected one.",
                hint="Log the folder that PEFT's save_pretrained wrote.",
            )
        inside = found[0][1]
        meta = {"mlflow.model": name, "mlflow.version": number, **self._run(version)}
        tags = tuple(alias for alias in aliases if _is_tag(alias))
        # A version's content never changes in MLflow: its creation tells it from a later one of a server made anew.
        revision = str(canonical.digest([where, version.get("creation_timestamp"), listing_digest(inside)]))
        return Item(where, revision, name, inside, tags=tags, meta=meta)

    def _run(self, version: Mapping[str, Any]) -> dict[str, str]:
        """Facts of the run that made a version."""
        if not version.get("run_id"):
            return {}
        run = self._get(f"{_API}/runs/get", {"run_id": version["run_id"]}, f"run {version['run_id']}")["run"]
        data, info = run.get("data", {}), run.get("info", {})
        facts = {"mlflow.run_id": version["run_id"], "mlflow.run_name": info.get("run_name")}
        facts |= {f"mlflow.param.{item['key']}": item.get("value") for item in data.get("params", [])}
        facts |= {f"mlflow.metric.{item['key']}": item.get("value") for item in data.get("metrics", [])}
        short = {key[:128]: str(value)[:_MAX_VALUE] for key, value in facts.items() if value not in (None, "")}
        return dict(list(short.items())[:_PAIRS])

    def _files(self, uri: str, where: str) -> Iterator[SourceFile]:
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts":
            yield from self._proxied(unquote(parts.path).strip("/"), "", _DEPTH)
        elif parts.scheme == "s3":
            bucket = BucketSource(parts.netloc, parts.path, None)
            self._others[uri] = bucket
            yield from (_at(file, uri) for file in bucket.files())
        elif parts.scheme in ("", "file") and self._here and Path(parts.path).is_dir():
            folder = FolderSource(Path(parts.path))
            self._others[uri] = folder
            yield from (_at(file, uri) for file in folder.files())
        else:
            raise RegistryError(
                "not-found",
                f"The files of {where} lie at {parts.scheme or 'file'}:{parts.path}, which is not on this machine.",
                hint="Import where that folder is, or serve artifacts with `mlflow server --serve-artifacts`.",
            )

    def _proxied(self, root: str, below: str, depth: int) -> Iterator[SourceFile]:
        path = f"{root}/{below}".rstrip("/")
        for entry in self._get(_FILES, {"path": path}, f"the artifacts at {path}").get("files", []):
            name = f"{below}/{str(entry['path']).rpartition('/')[2]}".lstrip("/")
            if not entry.get("is_dir"):
                yield SourceFile(name, entry.get("file_size"), location=f"{root}/{name}")
            elif depth:
                yield from self._proxied(root, name, depth - 1)

    def open(self, item: Item, file: SourceFile, start: int) -> Opened:
        if file.location.startswith("|"):
            uri, _, location = file.location[1:].partition("|")
            return self._others[uri].open(
                item, SourceFile(file.path, file.size, file.sha256, file.mark, location), start
            )
        return self._open(file.location, start)

    @contextmanager
    def _open(self, path: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self.transport.stream(
                "GET", self.transport.url(f"{_FILES}/{quote(path)}"), headers=headers
            ) as response:
                yield (start if response.status_code == 206 else 0), response.iter_bytes()
        except RegistryError as error:
            raise self._explained(error, path) from error

    def close(self) -> None:
        self.transport.close()
        for other in self._others.values():
            other.close()

    def _pages(self, path: str, params: dict[str, str], key: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._get(path, {**params, "max_results": "100", **({"page_token": token} if token else {})}, key)
            yield from page.get(key, [])
            token = page.get("next_page_token") or ""
            if not token:
                return

    def _get(self, path: str, params: Mapping[str, str], what: str) -> dict[str, Any]:
        try:
            content = self.transport.request("GET", self.transport.url(path), params=params).content
        except RegistryError as error:
            raise self._explained(error, what) from error
        document = canonical.loads_strict(content, what=f"The answer on {what}", max_bytes=_MAX_ANSWER)
        if not isinstance(document, dict):
            raise RegistryError("unavailable", f"The answer of {self.host} on {what} is not an object.")
        return document

    def _explained(self, error: RegistryError, what: str) -> RegistryError:
        status = error.facts.get("status")
        if status is None:
            return error
        code = error.code if error.code in ("not-found", "unauthenticated", "forbidden") else "unavailable"
        return RegistryError(
            code,
            f"MLflow at {self.host} answered {status} on {what}.",
            hint="Check the name; set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
        )


def connect(endpoint: str | None, name: str | None) -> MlflowSource:
    """Connect to the server that an option or MLFLOW_TRACKING_URI names, with MLflow's own variables."""
    text = endpoint or os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not text:
        raise RegistryError(
            "usage",
            "Which MLflow server is meant is not known.",
            hint="Set MLFLOW_TRACKING_URI, or give --endpoint URL.",
        )
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{key}", "") for key in ("USERNAME", "PASSWORD"))
    if user:
        from base64 import b64encode

        secret = b64encode(f"{user}:{password}".encode()).decode()
        return MlflowSource(check_server(text), name, secret, scheme="Basic")
    return MlflowSource(check_server(text), name, os.environ.get("MLFLOW_TRACKING_TOKEN", "").strip() or None)


def _at(file: SourceFile, uri: str) -> SourceFile:
    return SourceFile(file.path, file.size, file.sha256, file.mark, f"|{uri}|{file.location}")


def _is_tag(text: str) -> bool:
    try:
        reference.check_tag(text)
    except RegistryError:
        return False
    return True
