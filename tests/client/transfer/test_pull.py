"""Pull against the real service: the cache's layout, conditional requests, offline, broken and harmful answers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import TINY, Home, Said, fresh, variant
from tests.support.front import Answer, Front
from tests.support.service import InProcess

SOURCE = TINY / "adapters" / "queries-v1"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def name(home: Home) -> str:
    """A repository with one version, tagged prod."""
    name = f"{fresh()}/queries"
    home.ok("push", SOURCE, "--base", "tiny", name, "--tag", "prod")
    return name


@pytest.fixture
def front(registry: InProcess) -> Iterator[Front]:
    with Front(registry.url) as front:
        yield front


def behind(front: Front, home: Home) -> Home:
    return Home(home.folder, front.url)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def command(home: Home, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lora_reg.cli.main", *map(str, arguments)],
        env=home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_comes_out_is_what_went_in(home: Home, name: str, tmp_path: Path) -> None:
    home.ok("pull", f"{name}:prod", "-o", tmp_path / "out" / "deep")
    assert contents(tmp_path / "out" / "deep") == contents(SOURCE)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["deep"]


@pytest.mark.parametrize(
    "form", ["{name}", "{name}:latest", "{name}:v1", "{name}:prod", "{name}@{digest}", "{name}:prod@{digest}"]
)
def test_every_form_of_a_reference(home: Home, name: str, form: str) -> None:
    digest = home.json("show", name)["digest"]
    got = home.json("pull", form.format(name=name, digest=digest))
    assert (got["digest"], got["number"]) == (digest, 1)
    assert contents(Path(got["path"])) == contents(SOURCE)


def test_the_layout_of_the_cache(home: Home, name: str) -> None:
    got = home.json("pull", f"{name}:prod")
    digest = got["digest"].removeprefix("sha256:")
    assert Path(got["path"]) == home.cache / "snapshots" / name / digest[:40]
    for data in contents(SOURCE).values():
        hex_digits = hashlib.sha256(data).hexdigest()
        blob = home.cache / "blobs" / "sha256" / hex_digits[:2] / hex_digits
        assert blob.read_bytes() == data
        assert stat.S_IMODE(blob.stat().st_mode) == 0o444
        assert blob.stat().st_nlink == 2
    manifest = home.cache / "blobs" / "sha256" / digest[:2] / digest
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == digest
    server = hashlib.sha256(home.server.encode()).hexdigest()[:16]
    ref = json.loads((home.cache / "refs" / server / name / "prod.json").read_bytes())
    assert (ref["digest"], ref["reference"], ref["server"]) == (got["digest"], f"{name}:prod", home.server)
    assert list((home.cache / "downloads").iterdir()) == []
    assert list((home.cache / "tmp").iterdir()) == []


@pytest.mark.parametrize("into_folder", [False, True])
def test_a_second_pull_is_one_conditional_request(
    home: Home, name: str, front: Front, tmp_path: Path, into_folder: bool
) -> None:
    there = behind(front, home)
    where = ["-o", str(tmp_path / "out")] if into_folder else []
    there.ok("pull", f"{name}:prod", *where)
    before = state(home.cache) | state(tmp_path / "out")
    front.log.clear()
    got = there.json("pull", f"{name}:prod", *where)
    assert (got["fetched"], got["written"]) == (0, False)
    assert front.paths() == [f"/api/v1/repositories/{name}/versions/prod"]
    server = hashlib.sha256(front.url.encode()).hexdigest()[:16]
    ref = json.loads((home.cache / "refs" / server / name / "prod.json").read_bytes())
    assert front.log[0][2]["if-none-match"] == ref["etag"]
    assert state(home.cache) | state(tmp_path / "out") == before


def test_a_moved_tag_brings_only_what_is_new(home: Home, name: str, front: Front, tmp_path: Path) -> None:
    there = behind(front, home)
    there.ok("pull", f"{name}:prod")
    home.ok("push", variant(tmp_path / "second", seed=1), "--base", "tiny", name, "--tag", "prod")
    front.log.clear()
    got = there.json("pull", f"{name}:prod")
    assert got["number"] == 2
    assert got["fetched"] == (SOURCE / WEIGHTS).stat().st_size
    assert [path.rpartition("/")[2] for path in front.paths()] == ["prod", "manifest", WEIGHTS]


def test_a_folder_of_an_earlier_pull_is_replaced(home: Home, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    home.ok("pull", f"{name}:prod", "-o", out)
    second = variant(tmp_path / "second", seed=2)
    home.ok("push", second, "--base", "tiny", name, "--tag", "prod")
    assert home.json("pull", f"{name}:prod", "-o", out)["written"]
    assert contents(out) == contents(second)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith((".", "out"))) == ["out"]


@pytest.mark.parametrize("how", ["changed", "more", "foreign", "link", "file"])
def test_what_is_not_ours_is_never_overwritten(home: Home, name: str, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    if how in ("changed", "more"):
        home.ok("pull", f"{name}:prod", "-o", out)
        (out / ("adapter_config.json" if how == "changed" else "notes.txt")).write_text("mine")
    elif how == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if how == "foreign":
            (out / "thesis.tex").write_text("mine")
        else:
            for path in SOURCE.iterdir():
                (out / path.name).symlink_to(path)
    before = contents(tmp_path)
    home.ok("push", variant(tmp_path / "second", seed=3), "--base", "tiny", name, "--tag", "prod")
    said = home.run("pull", f"{name}:prod", "-o", out)
    assert said.status == 5
    assert "hint: " in said.err
    assert {path: data for path, data in contents(tmp_path).items() if path in before} == before | {}


def test_a_folder_that_holds_the_same_already_is_fine(home: Home, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for path in SOURCE.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    before = state(out)
    assert not home.json("pull", f"{name}:prod", "-o", out)["written"]
    assert state(out) == before


def test_an_empty_folder_is_filled(home: Home, name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    home.ok("pull", name, "-o", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(SOURCE)


def test_offline_serves_what_was_resolved_last(home: Home, name: str, tmp_path: Path) -> None:
    first = home.json("pull", f"{name}:prod")
    home.ok("push", variant(tmp_path / "second", seed=4), "--base", "tiny", name, "--tag", "prod")
    away = Home(home.folder, home.server)
    got = away.json("pull", f"{name}:prod", "--offline", "-o", tmp_path / "out")
    assert got["digest"] == first["digest"]
    assert got["resolved_at"]
    assert contents(tmp_path / "out") == contents(SOURCE)
    by_digest = away.json("pull", f"{name}@{first['digest']}", "--offline")
    assert by_digest["path"] == first["path"]


def test_offline_asks_nobody(home: Home, name: str, front: Front) -> None:
    there = behind(front, home)
    there.ok("pull", f"{name}:prod")
    front.log.clear()
    there.ok("pull", f"{name}:prod", "--offline")
    assert front.log == []


def test_offline_says_what_is_missing(home: Home, name: str) -> None:
    said = home.run("pull", f"{name}:prod", "--offline")
    assert said.status == 3
    assert f"{name}:prod was never pulled" in said.err
    got = home.json("pull", f"{name}:prod")
    blob = (Path(got["path"]) / WEIGHTS).read_bytes()
    digits = hashlib.sha256(blob).hexdigest()
    (home.cache / "blobs" / "sha256" / digits[:2] / digits).unlink()
    said = home.run("pull", f"{name}:prod", "--offline")
    assert said.status == 3
    assert WEIGHTS in said.err


def test_a_damaged_cache_is_mended(home: Home, name: str, tmp_path: Path) -> None:
    got = home.json("pull", f"{name}:prod")
    path = Path(got["path"]) / WEIGHTS
    path.chmod(0o644)
    path.write_bytes(b"short")
    home.ok("pull", f"{name}:prod")
    assert path.read_bytes() == (SOURCE / WEIGHTS).read_bytes()
    # Same length, other bytes: found when it is copied out, and mended by the next pull.
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x77")
    said = home.run("pull", f"{name}:prod", "-o", tmp_path / "out")
    assert said.status == 7
    assert not (tmp_path / "out").exists()
    home.ok("pull", f"{name}:prod", "-o", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(SOURCE)


def damage(answer: Answer) -> None:
    if answer.path.endswith(WEIGHTS):
        answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])


def shorten(answer: Answer) -> None:
    if answer.path.endswith(WEIGHTS) and "range" not in answer.asked:
        answer.body = answer.body[:-10]
        answer.headers["content-length"] = str(len(answer.body))
    elif answer.path.endswith(WEIGHTS):
        answer.status, answer.body = 416, b""
        answer.headers = {"content-length": "0"}


def lengthen(answer: Answer) -> None:
    if answer.path.endswith(WEIGHTS):
        answer.body += b"x" * 10
        answer.headers["content-length"] = str(len(answer.body))


def other_manifest(answer: Answer) -> None:
    if answer.path.endswith("/manifest"):
        answer.body = answer.body.replace(b"adapter_config.json", b"adapter_confiG.json")


@pytest.mark.parametrize("harm", [damage, shorten, lengthen, other_manifest])
@pytest.mark.parametrize("into_folder", [False, True])
def test_wrong_bytes_are_refused_and_nothing_is_visible(
    home: Home, name: str, front: Front, tmp_path: Path, harm, into_folder: bool
) -> None:
    front.harm = harm
    there = behind(front, home)
    where = ["-o", str(tmp_path / "out")] if into_folder else []
    said = there.run("pull", f"{name}:prod", *where)
    assert said.status == 7, said.err
    assert "hint: " in said.err
    assert not (tmp_path / "out").exists()
    assert not (home.cache / "snapshots").exists()
    assert not (home.cache / "refs").exists()
    good = hashlib.sha256((SOURCE / WEIGHTS).read_bytes()).hexdigest()
    assert not (home.cache / "blobs" / "sha256" / good[:2] / good).exists()
    front.harm = None
    assert contents(Path(there.json("pull", f"{name}:prod")["path"])) == contents(SOURCE)


def test_a_broken_connection_is_taken_up_where_it_broke(home: Home, name: str, front: Front) -> None:
    cuts = [20_000, 10_000, 5_000]

    def cut(answer: Answer) -> None:
        if answer.path.endswith(WEIGHTS) and cuts:
            answer.cut = cuts.pop(0)

    front.harm = cut
    got = behind(front, home).json("pull", f"{name}:prod")
    ranges = [asked.get("range") for _, path, asked in front.log if path.endswith(WEIGHTS)]
    assert ranges == [None, "bytes=20000-", "bytes=30000-", "bytes=35000-"]
    assert contents(Path(got["path"])) == contents(SOURCE)
    assert got["fetched"] == got["size"]


def test_a_server_without_ranges_sends_the_whole_file_again(home: Home, name: str, front: Front) -> None:
    whole = (SOURCE / WEIGHTS).read_bytes()
    cuts = [20_000]

    def no_ranges(answer: Answer) -> None:
        if answer.path.endswith(WEIGHTS):
            answer.status, answer.body = 200, whole
            answer.headers = {"content-length": str(len(whole))}
            if cuts:
                answer.cut = cuts.pop()

    front.harm = no_ranges
    got = behind(front, home).json("pull", f"{name}:prod")
    assert contents(Path(got["path"])) == contents(SOURCE)


def test_a_damaged_beginning_is_thrown_away(home: Home, name: str, front: Front) -> None:
    digits = hashlib.sha256((SOURCE / WEIGHTS).read_bytes()).hexdigest()
    part = home.cache / "downloads" / f"{digits}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"not what it should be")
    got = behind(front, home).json("pull", f"{name}:prod")
    assert contents(Path(got["path"])) == contents(SOURCE)
    ranges = [asked.get("range") for _, path, asked in front.log if path.endswith(WEIGHTS)]
    assert ranges == ["bytes=21-", None]


def test_a_connection_that_only_breaks_ends_with_status_10(home: Home, name: str, front: Front) -> None:
    def cut(answer: Answer) -> None:
        if answer.path.endswith(WEIGHTS):
            answer.cut = 0

    front.harm = cut
    said = behind(front, home).run("pull", f"{name}:prod")
    assert said.status == 10
    assert len([path for path in front.paths() if path.endswith(WEIGHTS)]) == 5


def slow(answer: Answer) -> None:
    if answer.path.endswith(WEIGHTS):
        answer.pace, answer.piece = 0.1, 2048


def wait_for_part(home: Home, at_least: int) -> Path:
    digits = hashlib.sha256((SOURCE / WEIGHTS).read_bytes()).hexdigest()
    part = home.cache / "downloads" / f"{digits}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= at_least):
        assert time.monotonic() < deadline, "nothing arrives"
        time.sleep(0.02)
    return part


def test_a_killed_pull_is_taken_up_by_the_next(home: Home, name: str, front: Front) -> None:
    front.harm = slow
    there = behind(front, home)
    process = command(there, "pull", f"{name}:prod")
    part = wait_for_part(home, 8192)
    process.kill()
    process.communicate()
    arrived = part.stat().st_size
    assert 0 < arrived < (SOURCE / WEIGHTS).stat().st_size
    assert not (home.cache / "snapshots").exists()
    front.harm = None
    front.log.clear()
    got = there.json("pull", f"{name}:prod")
    ranges = [asked.get("range") for _, path, asked in front.log if path.endswith(WEIGHTS)]
    assert ranges == [f"bytes={arrived}-"]
    assert contents(Path(got["path"])) == contents(SOURCE)


def test_an_interrupted_pull_ends_with_130_and_leaves_what_came(home: Home, name: str, front: Front) -> None:
    front.harm = slow
    process = command(behind(front, home), "pull", f"{name}:prod")
    part = wait_for_part(home, 4096)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert part.stat().st_size >= 4096


def test_two_processes_pull_the_same_thing(home: Home, name: str, front: Front, tmp_path: Path) -> None:
    front.harm = slow
    there = behind(front, home)
    processes = [command(there, "pull", f"{name}:prod", "--json", "-o", tmp_path / f"out{i}") for i in range(2)]
    processes.append(command(there, "pull", f"{name}:prod", "--json"))
    said = [Said(p.returncode, out, err) for p in processes for out, err in [p.communicate(timeout=60)]]
    assert [one.status for one in said] == [0, 0, 0], said
    for one in said:
        assert contents(Path(one.document["path"])) == contents(SOURCE)
    # The second waits for the first instead of fetching it again.
    assert len([path for path in front.paths() if path.endswith(WEIGHTS)]) == 1


def test_a_full_disk_is_told_before_the_first_byte(
    home: Home, name: str, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    said = behind(front, home).run("pull", f"{name}:prod")
    assert said.status == 10
    assert "more bytes are needed" in said.err
    assert [path for path in front.paths() if path.endswith(WEIGHTS)] == []


def test_a_missing_reference_ends_with_status_3(home: Home, name: str) -> None:
    for ref in (f"{name}:nope", f"{name}:v9", f"{name}x", f"{name}@sha256:{'0' * 64}"):
        assert home.run("pull", ref).status == 3, ref


def test_a_base_without_weights_cannot_be_pulled(home: Home) -> None:
    base = f"{fresh()}/structure"
    home.ok("base", "add", base, TINY / "base", "--manifest-only")
    said = home.run("pull", base)
    assert said.status == 3
    assert "--manifest-only" in said.err
