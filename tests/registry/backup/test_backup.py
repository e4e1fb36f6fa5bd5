"""Backups while pushes go on, killed in the middle, and restored elsewhere: on each database, from and to each store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lora_contract.digest import Digest
from tests.registry.site import DATABASES, Site, open_site, unique
from tests.support import service
from tests.support.databases import sqlite_in
from tests.support.forks import Forked
from tests.support.postgres import fresh_database
from tests.support.s3 import BUCKET, REGION, S3Server


def s3(server: S3Server) -> dict[str, str]:
    return {
        "LORA_REG_S3_ENDPOINT_URL": server.http,
        "LORA_REG_S3_REGION": REGION,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
    }


def command(environment: dict[str, str], *arguments: str | Path, fault: str | None = None) -> tuple[int, str, str]:
    """One command of `lora-registry` to its end."""
    process = Forked(
        [sys.executable, "-m", "lora_registry.cli", *map(str, arguments)],
        env=environment | ({"LORA_REG_FAULT": fault} if fault else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@dataclass
class Place:
    """A registry to back up, where its backups go, and what it answered."""

    site: Site
    environment: dict[str, str]
    destination: str
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def push(self, seed: int) -> None:
        version = self.site.pushed("ns", unique("kept"), seed)
        with self.lock:
            self.versions[f"{version['namespace']}/{version['name']}"] = version

    def backup(self, *arguments: str, fault: str | None = None) -> tuple[int, str, str]:
        return command(self.environment, "backup", self.destination, *arguments, fault=fault)

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Two threads that push until the end of the block, or each some versions, which have to be pulled later."""
        stopped = threading.Event()
        failed: list[Exception] = []

        def go(number: int) -> None:
            try:
                for seed in range(15):
                    if stopped.wait(0.3):
                        return
                    self.push(1000 * number + seed)
            except Exception as error:  # noqa: BLE001  told by the test
                failed.append(error)

        threads = [threading.Thread(target=go, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
        assert failed == []


@pytest.fixture(scope="module", params=DATABASES)
def place(
    request: pytest.FixtureRequest, ministack_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """SQLite and a folder, backed up to a bucket; PostgreSQL and a bucket, backed up to a folder."""
    database, folder = request.param, tmp_path_factory.mktemp("source")
    extra = s3(ministack_server)
    server = ""
    destination = f"s3://{BUCKET}/{unique('backup')}"
    if database == "postgresql":
        extra["LORA_REG_STORAGE_URL"] = f"s3://{BUCKET}/{unique('store')}"
        server, destination = request.getfixturevalue("postgres_server"), str(folder / "backup")
    with ExitStack() as stack:
        stack.enter_context(ministack_server.credentials())
        site = stack.enter_context(open_site(database, folder / "data", server, extra=extra))
        site.serve()
        site.need_base()
        yield Place(site, service.environment(site.data, site.extra), destination)


@contextmanager
def elsewhere(place: Place, request: pytest.FixtureRequest, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a new registry: the same kind of database, empty, and the other kind of store."""
    extra = {key: value for key, value in place.site.extra.items() if key.startswith(("AWS_", "LORA_REG_S3_"))}
    with ExitStack() as stack:
        if place.site.sqlite:
            extra["LORA_REG_STORAGE_URL"] = f"s3://{BUCKET}/{unique('restored')}"
        else:
            server = request.getfixturevalue("postgres_server")
            extra["LORA_REG_DATABASE_URL"] = stack.enter_context(fresh_database(server))
        yield service.environment(folder, extra)


@contextmanager
def served(environment: dict[str, str]) -> Iterator[httpx.Client]:
    running = service.InProcess(
        Path(environment["LORA_REG_DATA"]),
        {key: value for key, value in environment.items() if key.startswith("LORA_REG_") and key != "LORA_REG_DATA"},
    )
    try:
        with httpx.Client(base_url=running.url, timeout=60, follow_redirects=True) as client:
            yield client
    finally:
        running.stop()


def pulls(client: httpx.Client, name: str, version: dict[str, Any]) -> None:
    """Check that a version is there under its number, with all its bytes."""
    url = f"/api/v1/repositories/{name}/versions/v{version['number']}"
    found = client.get(url)
    assert found.status_code == 200, (name, found.text)
    assert (found.json()["digest"], found.json()["files"]) == (version["digest"], version["files"])
    for file in version["files"]:
        body = client.get(f"{url}/files/{file['path']}")
        assert (body.status_code, str(Digest.of(body.content))) == (200, file["digest"]), (name, file, body.text[:200])


def test_a_backup_during_pushes_survives_kills_and_is_restored(
    place: Place, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    for seed in range(3):
        place.push(seed)
    with place.pushing():
        for fault in ("backup.database", "backup.copied:7", "backup.document"):
            killed, _, _ = place.backup(fault=fault)
            assert killed == -9, fault
        with place.lock:
            before = dict(place.versions)
        status, out, err = place.backup()
        assert status == 0, err
    assert "event" in out
    newest = int(out.split("event ")[1].split(":")[0])
    events = place.site.client.get("/api/v1/events", params={"limit": 1000}).json()["items"]
    assert newest <= events[-1]["id"]
    with elsewhere(place, request, tmp_path / "restored") as environment:
        for fault in ("backup.copied:5", "restore.database", "restore.loaded"):
            killed, _, _ = command(environment, "restore", place.destination, fault=fault)
            assert killed == -9, fault
        status, out, err = command(environment, "restore", place.destination)
        assert status == 0, err
        assert "verified" in out
        with served(environment) as client:
            base = place.site.client.get("/api/v1/repositories/shared/base/versions/v1").json()
            for name, version in {**before, "shared/base": base}.items():
                pulls(client, name, version)
            # It goes on where the backup ended: a new version has the next number, the same content is known.
            again = client.get("/api/v1/events", params={"limit": 1000}).json()["items"]
            assert again[-1]["id"] == newest
        status, out, _ = command(environment, "fsck")
        assert status == 0, out
        refused, _, err = command(environment, "restore", place.destination)
        assert (refused, "not empty" in err) == (5, True), err


def test_only_new_blobs_are_copied_and_a_backup_reads_back(place: Place) -> None:
    place.push(31)
    assert place.backup()[0] == 0
    place.push(32)
    status, _, err = place.backup()
    assert status == 0
    assert "blobs: 1 copied" in err or "blobs: 2 copied" in err, err
    status, out, _ = place.backup("--verify")
    assert (status, "verified" in out) == (0, True), out


def test_a_lost_blob_is_named_and_marked(place: Place) -> None:
    version = place.site.pushed("ns", unique("lost"), 77)
    digest = next(file["digest"] for file in version["files"] if file["path"].endswith(".safetensors"))
    remove(place, digest)
    status, out, _ = place.backup()
    assert (status, digest.removeprefix("sha256:") in out) == (7, True), out
    place.site.pushed("ns", unique("mended"), 77)
    assert place.backup()[0] == 0


def test_old_backups_go_with_their_blobs(tmp_path: Path, postgres_server: str) -> None:
    with open_site("postgresql", tmp_path / "data", postgres_server) as site:
        site.serve()
        site.need_base()
        place = Place(site, service.environment(site.data, site.extra), str(tmp_path / "backup"))
        gone = site.pushed("ns", unique("gone"), 1)
        for _ in range(2):
            assert place.backup()[0] == 0
        blobs = [path for path in (tmp_path / "backup" / "blobs").rglob("*") if path.is_file()]
        # As a collector does it, days later.
        assert site.client.delete(f"/api/v1/repositories/ns/{gone['name']}/versions/v1").status_code == 204
        weights = next(file["digest"] for file in gone["files"] if file["path"].endswith(".safetensors"))
        remove(place, weights)
        place.push(2)
        status, _, err = place.backup("--keep", "2")
        assert (status, "removed: 1 backups, 0 blobs" in err) == (0, True), err
        status, _, err = place.backup("--keep", "1")
        assert (status, "removed: 2 backups, 1 blobs" in err) == (0, True), err
        left = [path for path in (tmp_path / "backup" / "blobs").rglob("*") if path.is_file()]
        assert {path.name for path in blobs} - {path.name for path in left} == {weights.removeprefix("sha256:")}
        assert len(list((tmp_path / "backup" / "backups").iterdir())) == 1
        assert place.backup("--verify")[0] == 0
        # A backup that was killed may be running for all that others know: its blobs stay.
        assert place.backup(fault="backup.document")[0] == -9
        assert "old blobs stay" in place.backup("--keep", "1")[2]
        assert place.backup("--verify")[0] == 0


def remove(place: Place, digest: str) -> None:
    from lora_registry import settings
    from lora_registry.storage import open_blobs

    store = open_blobs(settings.load(place.environment))
    store.delete(Digest.parse(digest))


def test_a_restore_without_the_blobs_says_what_is_missing(
    place: Place, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    version = place.site.pushed("ns", unique("gone"), 78)
    assert place.backup()[0] == 0
    digest = next(file["digest"] for file in version["files"] if file["path"].endswith(".safetensors"))
    destination = Place(place.site, {**place.environment, "LORA_REG_STORAGE_URL": place.destination}, "")
    remove(destination, digest)
    assert place.backup("--verify")[0] == 7
    with elsewhere(place, request, tmp_path / "restored") as environment:
        status, out, err = command(environment, "restore", place.destination)
        assert (status, digest.removeprefix("sha256:") in out) == (7, True), err
    assert place.backup()[0] == 0  # it is copied again
    assert place.backup("--verify")[0] == 0


def test_files_of_a_folder_are_the_owners(place: Place) -> None:
    if place.destination.startswith("s3://"):
        pytest.skip("a bucket has no modes")
    assert place.backup()[0] == 0
    folder = Path(place.destination)
    for path in (folder, folder / "blobs", folder / "backups"):
        assert path.stat().st_mode & 0o077 == 0, path
    files = [path for path in (folder / "backups").rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    newest = json.loads(max((folder / "backups").glob("*/backup.json")).read_bytes())
    assert newest["format"] == "lora-registry-backup/1"


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    environment = service.environment(tmp_path / "data")
    sqlite_in(tmp_path / "data")
    for arguments, status, said in (
        (["backup", "ftp://x/y"], 2, "ftp://"),
        (["backup", tmp_path / "data"], 2, "is the store itself"),
        (["backup", tmp_path, "--id", "x"], 2, "--verify"),
        (["backup", tmp_path, "--verify", "--keep", "2"], 2, "--keep"),
        (["backup", tmp_path / "new", "--verify"], 3, "no folder"),
        (["backup", tmp_path, "--verify"], 3, "no finished backup"),
        (["restore", tmp_path / "new"], 3, "no folder"),
        (["restore", tmp_path, "--id", "20260101T000000Z-00000000"], 3, "no finished backup"),
    ):
        found, _, err = command(environment, *arguments)
        assert (found, said in err) == (status, True), (arguments, err)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


Harm = Callable[[Path], None]


def _cut(file: Path) -> None:
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-10])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(("part", "harm"), [("database", _cut), ("database", _flip), ("blobs", _cut)])
def test_a_damaged_backup_is_not_restored(tmp_path: Path, part: str, harm: Harm) -> None:
    environment = service.environment(tmp_path / "data")
    sqlite_in(tmp_path / "data")
    assert command(environment, "backup", tmp_path / "backup")[0] == 0
    (file,) = (tmp_path / "backup" / "backups").glob(f"*/{part}")
    if not file.stat().st_size:
        file.write_bytes(b"more")
    else:
        harm(file)
    target = service.environment(tmp_path / "target")
    status, _, err = command(target, "restore", tmp_path / "backup")
    assert status == 7, err
    assert command(environment, "backup", tmp_path / "backup", "--verify")[0] == 7
    # Nothing of it is there, so that another one can be restored.
    assert command(environment, "backup", tmp_path / "backup")[0] == 0
    assert command(target, "restore", tmp_path / "backup")[0] == 0


def test_a_database_goes_with_its_kind(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert place.backup()[0] == 0
    with elsewhere(place, request, tmp_path / "data") as environment:
        if place.site.sqlite:
            server = request.getfixturevalue("postgres_server")
            with fresh_database(server) as url:
                found = command({**environment, "LORA_REG_DATABASE_URL": url}, "restore", place.destination)
        else:
            found = command(
                {key: value for key, value in environment.items() if key != "LORA_REG_DATABASE_URL"},
                "restore",
                place.destination,
            )
    assert (found[0], "of the same kind" in found[2]) == (2, True), found


def test_every_table_is_restored(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """All rows of all tables, those of the job engine too, and the numbers that come next."""
    place.push(55)
    assert place.backup()[0] == 0
    with elsewhere(place, request, tmp_path / "restored") as environment:
        status, _, err = command(environment, "restore", place.destination)
        assert status == 0, err
        url = environment.get("LORA_REG_DATABASE_URL") or f"sqlite:///{tmp_path / 'restored' / 'registry.sqlite3'}"
        source, target = rows(place.site.database), rows(url)
        assert source.keys() == target.keys()
        assert {name for name in source if source[name] != target[name]} == set()
        assert len(source["version"]) > 1
        assert any("workflow" in name and found for name, found in source.items())


def rows(url: str) -> dict[str, list[Any]]:
    engine = sa.create_engine(url)
    found = {}
    try:
        inspector = sa.inspect(engine)
        schemas = [None] if engine.dialect.name == "sqlite" else [None, "dbos"]
        with engine.connect() as connection:
            for schema in schemas:
                for name in inspector.get_table_names(schema=schema):
                    if "migration" in name or name in ("worker_lease", "task_lease"):
                        continue
                    table = f'"{schema}"."{name}"' if schema else f'"{name}"'
                    found[name] = sorted(map(str, connection.execute(sa.text(f"SELECT * FROM {table}"))))
            if schemas != [None]:
                query = "SELECT schemaname, sequencename, last_value FROM pg_sequences"
                found["(sequences)"] = sorted(map(str, connection.execute(sa.text(query))))
    finally:
        engine.dispose()
    return found
