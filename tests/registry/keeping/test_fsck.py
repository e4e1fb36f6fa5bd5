"""`lora-registry fsck`: rows without bytes, bytes without rows, damaged bytes; and the sample that workers read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lora_registry.cli import main
from lora_registry.keeping import tasks
from tests.registry.keeping.shelves import Shelf, flipped, sha256, shelved
from tests.registry.site import SHARED, Site, adapter_files, unique
from tests.support import service
from tests.support.push import push

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Site, Shelf]]:
    with shelved("sqlite-folder", tmp_path, "", None, LORA_REG_VERIFIED_SECONDS="0") as made:
        yield made


def fsck(site: Site, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["fsck", *arguments], env=service.environment(site.data, site.extra))


def test_both_ways_and_repair(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    name, files = unique("checked"), {**adapter_files(1), "README.md": b"read me"}
    assert push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 201
    done = fsck(site)
    assert (done.exit_code, done.output) == (0, "All blobs match their digests.\n")
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS]))
    shelf.write(files["README.md"], None)
    assert site.thread is not None
    site.thread.context.blobs.put_unknown([b"nobody's"])
    done = fsck(site)
    assert done.exit_code == 7
    lines = done.output.splitlines()
    assert f"sha256:{sha256(files[WEIGHTS])}: damaged, needed by ns/{name}:v1" in lines
    assert f"sha256:{sha256(files['README.md'])}: missing, needed by ns/{name}:v1" in lines
    assert "2 blobs are missing or damaged." in lines
    assert any(line.startswith("1 objects belong to no blob") for line in lines)
    # Without --repair nothing was marked: the bytes are found again by whoever reads them.
    assert push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 500
    assert fsck(site, "--repair").exit_code == 7
    assert push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 200
    assert fsck(site).exit_code == 0
    # An operator who restores the bytes from a copy has the row set right.
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS]))
    assert fsck(site, "--repair").exit_code == 7
    shelf.write(files[WEIGHTS], files[WEIGHTS])
    done = fsck(site, "--repair", "--rate", "100")
    assert (done.exit_code, "was damaged, is right now" in done.output) == (0, True)
    url = f"/api/v1/repositories/ns/{name}/versions/v1/files/{WEIGHTS}"
    assert site.client.get(url).content == files[WEIGHTS]


def test_a_sample_finds_what_is_missing_and_reads_no_more_than_asked(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    name, files = unique("sampled"), adapter_files(2)
    assert push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 201
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS]))
    assert fsck(site, "--sample", "0").exit_code == 0
    assert fsck(site, "--sample", "1").exit_code == 7
    shelf.write(files[WEIGHTS], files[WEIGHTS][:-1])
    assert fsck(site, "--sample", "0").exit_code == 7


def test_workers_verify_what_was_verified_longest_ago(kept: tuple[Site, Shelf]) -> None:
    site, shelf = kept
    assert site.thread is not None
    ctx = site.thread.context
    name, files = unique("scheduled"), adapter_files(3)
    assert push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base").status_code == 201
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS]))
    assert tasks.verify_oldest(ctx) == 1
    assert tasks.verify_oldest(ctx) is None, "not again before the interval has passed"
    assert [e["kind"] for e in site.events(f"ns/{name}") if e["kind"].startswith("blob-")] == ["blob-damaged"]
    url = f"/api/v1/repositories/ns/{name}/versions/v1/files/{WEIGHTS}"
    assert site.client.get(url).status_code == 500
