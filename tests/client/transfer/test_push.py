"""Push and base add by the command line: what is accepted, what is refused, what travels."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_contract.errors import RegistryError
from lora_reg.client import Client
from lora_reg.config import Settings
from lora_reg.transfer.scan import scan_folder
from tests.support.command import ALIAS, TINY, Home, fresh, variant
from tests.support.front import Answer, Front
from tests.support.service import InProcess
from tests.support.testbed import require_testbed

SOURCE = TINY / "adapters" / "queries-v1"
CASES = [
    "duplicate-json-keys",
    "empty-directory",
    "header-length-8gb",
    "missing-lora-b",
    "module-not-in-base",
    "nan-one-tensor",
    "overwrites-base-norm",
    "pickle-bin",
    "rank-differs",
    "tar-path-traversal",
    "truncated-safetensors",
    "wrong-shape-one-module",
    "zero-adapter",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path / "adapter", copy_function=shutil.copyfile))


@pytest.fixture(scope="package")
def testbed_base(registries: Callable[[bool], InProcess], tmp_path_factory: pytest.TempPathFactory) -> str:
    base = f"{fresh()}/tiny-llama-4m"
    home = Home(tmp_path_factory.mktemp("home"), registries(False).url)
    home.ok("base", "add", base, require_testbed() / "base", "--alias", "lora-reg-fixture/tiny-llama-4m")
    return base


def test_a_push_makes_a_version_and_again_the_same(home: Home, tmp_path: Path) -> None:
    name = f"{fresh()}/queries"
    folder = variant(tmp_path / "new", seed=907)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": name}))
    first = home.json(
        "push", folder, "--base", "tiny", f"{name}:candidate", "--tag", "best", "-m", "first", "--meta", "run=7"
    )
    version = first["version"]
    assert first["schema"] == "lora-reg/push/1"
    assert (first["created"], version["number"], version["message"], version["meta"]) == (
        True,
        1,
        "first",
        {"run": "7"},
    )
    assert sorted(version["tags"]) == ["best", "candidate"]
    assert version["base"]["name"] == "tiny"
    assert first["sent"] == sum(path.stat().st_size for path in folder.iterdir())
    again = home.json("push", folder, "--base", "tiny", name)
    assert (again["created"], again["sent"], again["version"]["digest"]) == (False, 0, version["digest"])


def test_only_what_is_lacking_travels(home: Home, registry: InProcess, tmp_path: Path) -> None:
    name = f"{fresh()}/queries"
    home.ok("push", SOURCE, "--base", "tiny", name)
    second = variant(tmp_path / "second", seed=905)
    with Front(registry.url) as front:
        pushed = Home(home.folder, front.url).json("push", second, "--base", "tiny", name, "--parent", f"{name}:v1")
        sent = [path.rpartition("/")[2] for path in front.paths("PUT")]
    assert pushed["version"]["number"] == 2
    assert pushed["sent"] == (second / "adapter_model.safetensors").stat().st_size
    assert len(sent) == 1
    assert [parent["number"] for parent in pushed["version"]["parents"]] == [1]


def test_without_a_reference_the_folder_gives_the_name(home: Home, tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "my-adapter", copy_function=shutil.copyfile)
    assert home.json("push", tmp_path / "my-adapter", "--base", "tiny")["version"]["name"] == "my-adapter"
    shutil.copytree(SOURCE, tmp_path / "My Adapter", copy_function=shutil.copyfile)
    said = home.run("push", tmp_path / "My Adapter", "--base", "tiny")
    assert said.status == 2
    assert "'My Adapter'" in said.err


def test_a_dry_run_sends_nothing(home: Home, registry: InProcess) -> None:
    name = f"{fresh()}/queries"
    with Front(registry.url) as front:
        told = Home(home.folder, front.url).json("push", SOURCE, "--base", "tiny", name, "--dry-run")
        assert front.paths("POST") == front.paths("PUT") == []
    assert (told["dry_run"], told["target"], told["facts"]["r"]) == (True, name, 8)
    assert home.run("show", name).status == 3


@pytest.mark.parametrize("case", CASES)
def test_every_broken_adapter_is_refused(home: Home, testbed_base: str, tmp_path: Path, case: str) -> None:
    place = require_testbed() / "broken" / case
    what = place / "adapter.tar" if (place / "adapter.tar").exists() else place / "adapter"
    if case == "empty-directory":
        what = tmp_path / "adapter"
        what.mkdir()
    name = f"{fresh()}/broken"
    said = home.run("push", what, "--base", testbed_base, name, "--json")
    assert said.status == 6, said.err
    problem = said.document
    assert (problem["schema"], problem["exit"]) == ("lora-reg/problem/1", 6)
    assert problem["findings"]
    assert all(finding["message"] and finding["code"] for finding in problem["findings"])
    assert said.err.startswith("error: ")
    assert "hint: " in said.err
    assert home.run("show", name).status == 3
    assert not Path("/tmp/pwned").exists()


def test_every_good_adapter_is_accepted(home: Home, testbed_base: str) -> None:
    folders = sorted(path.parent for path in (require_testbed() / "adapters").rglob("adapter_config.json"))
    assert len(folders) == 12
    for folder in folders:
        home.ok("push", folder, "--base", testbed_base, f"{fresh()}/good")


def test_all_findings_are_told_each_on_its_line(home: Home, folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_bytes())
    config["base_model_name_or_path"] = "somebody/else"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "run.py").write_text("print()")
    (folder / "state.pt").write_bytes(b"PK\x03\x04")
    said = home.run("push", folder, "--base", "tiny", f"{fresh()}/x", "--json")
    assert said.status == 6
    findings = said.document["findings"]
    assert {"base-mismatch", "code", "pickle"} <= {finding["code"] for finding in findings}
    for finding in findings:
        assert sum(finding["message"] in line for line in said.err.splitlines()) >= 1


def test_a_name_that_is_no_alias_is_refused_once_with_both_ways_out(home: Home, folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_bytes())
    config["base_model_name_or_path"] = f"somebody/{fresh()}"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = f"{fresh()}/x"
    said = home.run("push", folder, "--base", "tiny", name)
    assert said.status == 6
    assert "base alias" in said.err
    assert "--accept-base" in said.err
    assert home.json("push", folder, "--base", "tiny", name, "--accept-base")["created"]
    home.ok("base", "alias", "tiny", config["base_model_name_or_path"])
    assert not home.json("push", folder, "--base", "tiny", name)["created"]


@pytest.mark.parametrize("kind", ["link", "folder-link", "pipe", "socket", "bad-name", "hidden"])
def test_only_regular_files_are_pushed(
    home: Home, folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "link":
        (folder / "README.md").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_text("secret")
    elif kind == "folder-link":
        (folder / "more").symlink_to(tmp_path)
    elif kind == "pipe":
        os.mkfifo(folder / "README.md")
    elif kind == "socket":
        monkeypatch.chdir(folder)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("README.md")
    elif kind == "bad-name":
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.md"))).write_text("x")
    else:
        (folder / ".env").write_text("TOKEN=secret")
    said = home.run("push", folder, "--base", "tiny", f"{fresh()}/x", "--json")
    assert said.status == 6, said.err
    code = {"link": "link", "folder-link": "link", "pipe": "not-a-file", "socket": "not-a-file"}.get(kind, "bad-path")
    assert code in [finding["code"] for finding in said.document["findings"]]


def test_housekeeping_is_left_out_and_told(home: Home, folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / ".gitattributes").write_text("x")
    said = home.ok("push", folder, "--base", "tiny", f"{fresh()}/x")
    assert "left out: .git/, .gitattributes\n" in said.err
    assert "2 files" in said.out


def test_a_file_that_changes_while_it_is_read_is_noticed(folder: Path) -> None:
    scan = scan_folder(folder)
    with (folder / "adapter_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(RegistryError) as caught:
        scan.hash()
    assert caught.value.code == "digest-mismatch"
    with pytest.raises(RegistryError, match=r"adapter_config\.json changed"):
        scan.reader()("adapter_config.json", 0, 2)


def test_a_file_swapped_for_a_link_after_the_scan_is_not_followed(folder: Path, tmp_path: Path) -> None:
    scan = scan_folder(folder)
    (tmp_path / "secret").write_text("secret")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(RegistryError, match="changed while it was read"):
        scan.reader()("adapter_config.json", 0, 6)


@pytest.mark.parametrize("what", ["adapter.zip", "adapter_model.safetensors"])
def test_a_file_is_no_folder(home: Home, tmp_path: Path, what: str) -> None:
    (tmp_path / what).write_bytes(b"PK\x03\x04")
    said = home.run("push", tmp_path / what, "--base", "tiny", f"{fresh()}/x")
    assert said.status == 6
    assert "archives are never unpacked" in said.err


def test_usage(home: Home, tmp_path: Path) -> None:
    assert home.run("push", tmp_path / "nothing", "--base", "tiny", "x").status == 2
    assert home.run("push").status == 2
    assert home.run("push", SOURCE, "--base", "tiny", "Not A Name").status == 2
    assert home.run("push", SOURCE, "--base", "tiny", f"{fresh()}/x:v3").status == 2
    assert home.run("push", SOURCE, "--base", "tiny", f"{fresh()}/x", "--meta", "novalue").status == 2
    said = home.run("push", SOURCE, "--base", "nobase", f"{fresh()}/x")
    assert said.status == 3
    assert "lora-reg base list" in said.err


def test_an_adapter_is_no_base(home: Home) -> None:
    name = f"{fresh()}/x"
    home.ok("push", SOURCE, "--base", "tiny", name)
    assert home.run("push", SOURCE, "--base", name, f"{fresh()}/y").status == 5
    assert home.run("base", "show", name).status == 5


def test_a_lost_answer_to_a_commit_is_asked_for_again(home: Home, registry: InProcess, tmp_path: Path) -> None:
    lost: list[str] = []

    def lose(answer: Answer) -> None:
        if answer.method == "POST" and answer.path.endswith("/versions") and not lost:
            lost.append(answer.asked["idempotency-key"])
            answer.cut = 0

    name = f"{fresh()}/x"
    with Front(registry.url, harm=lose) as front:
        pushed = Home(home.folder, front.url).json("push", variant(tmp_path / "v", seed=906), "--base", "tiny", name)
        keys = [
            asked.get("idempotency-key")
            for verb, path, asked in front.log
            if verb == "POST" and path.endswith("/versions")
        ]
    assert pushed["version"]["number"] == 1
    assert keys == [lost[0], lost[0]]
    assert len(home.json("history", name)["versions"]) == 1


def test_bases(home: Home, tmp_path: Path) -> None:
    base = f"{fresh()}/llama"
    added = home.json("base", "add", base, TINY / "base", "--alias", f"{base}-hf", "--tag", "stable")
    assert added["schema"] == "lora-reg/base-add/1"
    assert added["version"]["kind"] == "base"
    shown = home.json("base", "show", base)
    assert shown["repository"]["aliases"] == [f"{base}-hf"]
    assert shown["version"]["facts"]["embedding_rows"] > 0
    listed = home.json("base", "list")["items"]
    assert base in [f"{item['namespace']}/{item['name']}" for item in listed]
    assert {item["kind"] for item in listed} == {"base"}
    # A base out of a download cache is links to blobs; they stand for their files.
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in (TINY / "base").iterdir():
        (linked / path.name).symlink_to(path)
    assert not home.json("base", "add", base, linked)["created"]


def test_a_base_by_structure_alone_sends_no_weights_and_checks_the_same(
    home: Home, folder: Path, tmp_path: Path
) -> None:
    base = f"{fresh()}/structure"
    copy = Path(shutil.copytree(TINY / "base", tmp_path / "base", copy_function=shutil.copyfile))
    (copy / "README.md").write_text(base)
    weights = next(copy.glob("*.safetensors"))
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    added = home.json("base", "add", base, copy, "--manifest-only", "--alias", ALIAS)
    # Neither the README nor these weights were ever sent; only the README travels.
    assert added["sent"] == len(base)
    assert added["version"]["weights_absent"]
    assert home.json("push", folder, "--base", base, f"{fresh()}/x")["created"]
    assert home.run("push", TINY / "broken" / "overwrites-base-norm", "--base", base, f"{fresh()}/x").status == 6


def test_weights_that_follow_make_no_other_version(home: Home, folder: Path, tmp_path: Path) -> None:
    base, small = f"{fresh()}/later", tmp_path / "small"
    thin = home.json("base", "add", base, TINY / "base", "--manifest-only", "--alias", ALIAS)
    assert thin["version"]["weights_absent"]
    name = f"{fresh()}/x"
    adapter = home.json("push", folder, "--base", base, name)["version"]
    absent = home.run("pull", base, "-o", small)
    assert (absent.status, "--manifest-only" in absent.err) == (3, True)
    whole = home.json("base", "add", base, TINY / "base")
    assert (whole["created"], whole["weights_added"]) == (False, True)
    assert (whole["version"]["digest"], whole["version"]["number"]) == (thin["version"]["digest"], 1)
    assert not whole["version"]["weights_absent"]
    home.ok("pull", base, "-o", small)
    assert {path.name: path.read_bytes() for path in small.iterdir()} == {
        path.name: path.read_bytes() for path in (TINY / "base").iterdir()
    }
    # Nothing changes for adapters, and the structure alone does not take the weights away.
    again = home.json("push", folder, "--base", base, name)
    assert (again["created"], again["version"]["digest"]) == (False, adapter["digest"])
    third = home.json("base", "add", base, TINY / "base", "--manifest-only")
    assert (third["created"], third["weights_added"], third["version"]["weights_absent"]) == (False, False, False)


def test_the_python_client_pushes_and_pulls(registry: InProcess, tmp_path: Path) -> None:
    from lora_reg import pull, push_adapter

    settings = Settings(server=registry.url, cache=tmp_path / "cache")
    with Client(settings=settings) as client:
        pushed = push_adapter(client, SOURCE, base="tiny", to=f"{fresh()}/x", tags=["prod"])
        assert pushed.result is not None
        version = pushed.result.version
        got = pull(client, f"{version.namespace}/{version.name}:prod")
    assert (got.digest, got.number) == (version.digest, 1)
    assert (got.path / "adapter_config.json").read_bytes() == (SOURCE / "adapter_config.json").read_bytes()


@pytest.mark.parametrize("lost", [False, True], ids=["flipped", "lost"])
def test_a_push_repairs_what_the_store_damaged(home: Home, registry: InProcess, tmp_path: Path, lost: bool) -> None:
    """In one command: the server finds it at the commit, and the client sends the file after all."""
    name, other = f"{fresh()}/queries", f"{fresh()}/again"
    folder = variant(tmp_path / "new", seed=31 + lost)
    home.ok("push", folder, "--base", "tiny", name)
    data = (folder / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (stored,) = (registry.context.settings.data / "blobs").rglob(digest)
    stored.unlink()
    if not lost:
        stored.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    pulled = home.run("pull", f"{name}:v1", "-o", tmp_path / "out")
    if lost:
        assert (pulled.status, (tmp_path / "out").exists()) == (7, False)
    done = home.json("push", folder, "--base", "tiny", other)
    assert done["created"] is True
    assert stored.read_bytes() == data
    home.ok("pull", f"{name}:v1", "-o", tmp_path / "out")
