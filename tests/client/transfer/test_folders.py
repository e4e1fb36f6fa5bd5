"""Folders as they lie: what trainers and the Hub leave beside an adapter or a base is left out, and named."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_contract.byproducts import BYPRODUCTS
from tests.support.adapters import make_adapter, make_base
from tests.support.command import TINY, Home, fresh
from tests.support.opens import opened_below
from tests.support.service import InProcess
from tests.support.wild import require_wild

SOURCE = TINY / "adapters" / "queries-v1"
OWN = {"adapter_config.json", "adapter_model.safetensors"}
WILD = {
    "trainer": ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"],
    "training_args": ["training_args.bin"],
    "deepspeed": ["global_step10/", "latest", "zero_to_fp32.py"],
    "llamafactory": ["trainer_log.jsonl", "training_loss.png"],
}


@pytest.fixture(scope="package")
def small_base(registries: Callable[[bool], InProcess], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the adapters among the inputs from the world, registered under the name in their configs."""
    folder = make_base(tmp_path_factory.mktemp("small") / "base")
    home = Home(tmp_path_factory.mktemp("home"), registries(False).url)
    home.ok("base", "add", f"{fresh()}/small", folder, "--alias", "acme/base")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path / "adapter", copy_function=shutil.copyfile))


def place(folder: Path, name: str) -> None:
    path = folder / name
    if name.endswith("/"):
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "data.bin").write_bytes(b"\x80\x04.")
    else:
        path.write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize("name", WILD)
def test_what_a_trainer_left_is_pushed_with_no_option(home: Home, small_base: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(require_wild("trainer-folder") / name, tmp_path / "run", copy_function=shutil.copyfile)
    assert small_base
    target = f"{fresh()}/x"
    with opened_below(folder) as opened:
        said = home.ok("push", folder, target, "--json")
    files = {file["path"] for file in said.document["version"]["files"]}
    assert files == OWN | ({"trainer_state.json"} if name == "trainer" else set())
    assert said.document["left_out"] == WILD[name]
    assert f"left out: {', '.join(WILD[name])}\n" in said.err
    assert opened <= files | {"."}
    # Today's rule.
    refused = home.run("push", folder, target, "--strict", "--json")
    assert refused.status == 6
    assert {finding["file"] for finding in refused.document["findings"]} == {
        "global_step10/mp_rank_00_model_states.pt" if left == "global_step10/" else left for left in WILD[name]
    }


def test_every_known_byproduct_is_left_out_unopened(home: Home, folder: Path) -> None:
    names = sorted({_example(name) for row in BYPRODUCTS for name in row.names})
    for name in names:
        place(folder, name)
    (folder / "optimizer.pt").unlink()
    os.mkfifo(folder / "optimizer.pt")  # whoever opens it to read waits
    (folder / "runs-link").symlink_to("/etc")
    (folder / "runs-link").rename(folder / "checkpoint-7")
    with opened_below(folder) as opened:
        pushed = home.json("push", folder, f"{fresh()}/x")
    assert {file["path"] for file in pushed["version"]["files"]} == OWN
    assert pushed["left_out"] == sorted([*names, "checkpoint-7"])
    assert opened <= OWN | {"."}


def _example(pattern: str) -> str:
    return pattern.replace("[0-9]*", "0").replace("*", "1")


def test_a_long_line_is_cut(home: Home, folder: Path) -> None:
    for number in range(12):
        (folder / f"plot{number:02}.png").write_bytes(b"x")
    said = home.ok("push", folder, f"{fresh()}/x", "--dry-run")
    assert "plot07.png and 4 more (--json names them)" in said.err
    assert "plot08.png" not in said.err


def test_adapter_in_another_format_alone_is_not_left_out(home: Home, folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    said = home.run("push", folder, f"{fresh()}/x", "--json")
    assert said.status == 6
    assert {finding["code"] for finding in said.document["findings"]} == {"pickle", "file-missing"}


def test_unknown_files_are_refused_and_can_be_excluded(home: Home, folder: Path) -> None:
    (folder / "table.csv").write_text("1,2")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.pkl").write_bytes(b"\x80\x04.")
    (folder / "run.py").write_text("print()")
    target = f"{fresh()}/x"
    said = home.run("push", folder, target)
    assert said.status == 6
    assert "--exclude" in said.err
    with opened_below(folder) as opened:
        pushed = home.json("push", folder, target, "--exclude", "*.csv", "--exclude", "/notes/", "--exclude", "*.py")
    assert pushed["left_out"] == ["notes/", "run.py", "table.csv"]
    assert opened <= OWN | {"."}
    assert home.run("push", folder, target, "--exclude", "*.csv").status == 6
    # A pattern of the user's counts with --strict too.
    globs = ["--exclude", "*.csv", "--exclude", "notes/", "--exclude", "*.py"]
    assert home.json("push", folder, target, "--strict", *globs)["created"] is False


def test_a_folder_says_itself_what_is_left_out(home: Home, folder: Path) -> None:
    for name in ("table.csv", "kept.md", "other.md"):
        (folder / name).write_text("x")
    (folder / ".loraregignore").write_text("# notes\n*.csv\n*.md\n!kept.md\n")
    target = f"{fresh()}/x"
    pushed = home.json("push", folder, target)
    assert pushed["left_out"] == [".loraregignore", "other.md", "table.csv"]
    assert {file["path"] for file in pushed["version"]["files"]} == {*OWN, "kept.md"}
    # Strict: nothing that lies in the folder decides.
    assert home.run("push", folder, target, "--strict").status == 6


def test_a_bad_pattern_is_an_error(home: Home, folder: Path) -> None:
    assert home.run("push", folder, f"{fresh()}/x", "--exclude", "!").status == 2


@pytest.mark.parametrize("content", [b"\xff\xfe", b"*a*a*a*a*a*a*a*a*b", b"x\n" * 40_000, None])
def test_a_bad_ignore_file_is_an_error(home: Home, folder: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        (tmp_path / "elsewhere").write_text("*.csv")
        (folder / ".loraregignore").symlink_to(tmp_path / "elsewhere")
    else:
        (folder / ".loraregignore").write_bytes(content)
    assert home.run("push", folder, f"{fresh()}/x").status == 2


def test_a_parent_of_checkpoints_is_answered_with_the_command(home: Home, tmp_path: Path) -> None:
    run = tmp_path / "My Run"
    for step in (500, 1000):
        shutil.copytree(SOURCE, run / f"checkpoint-{step}", copy_function=shutil.copyfile)
        place(run / f"checkpoint-{step}", "optimizer.pt")
    name = f"{fresh()}/Tuned"
    said = home.run("push", run, name, "--tag", "candidate")
    assert said.status == 2
    assert "checkpoint-500, checkpoint-1000" in said.err
    words = shlex.split(re.findall("`(.*)`", said.err)[0])
    assert words == ["lora-reg", "push", str(run / "checkpoint-1000"), name, "--tag", "candidate"]
    assert home.ok(*words[1:]).out.startswith(f"{name}:v1")
    # Without a name, that of the parent is filled in: the checkpoint's says nothing.
    run.rename(tmp_path / "tuned")
    said = home.run("push", tmp_path / "tuned")
    assert shlex.split(re.findall("`(.*)`", said.err)[0])[2:] == [str(tmp_path / "tuned/checkpoint-1000"), "tuned"]


def test_an_adapter_with_checkpoints_in_it_is_the_adapter(home: Home, folder: Path) -> None:
    shutil.copytree(SOURCE, folder / "checkpoint-9", copy_function=shutil.copyfile)
    assert home.json("push", folder, f"{fresh()}/x")["left_out"] == ["checkpoint-9/"]


def cache_of(tmp_path: Path, source: Path) -> Path:
    """A snapshot in a download cache, as huggingface_hub makes it."""
    repository = tmp_path / "models--acme--x"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copyfile(file, repository / "blobs" / f"{file.name}.blob")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}.blob")
    return snapshot


def test_links_of_a_hub_cache_are_followed_inside_it(home: Home, tmp_path: Path) -> None:
    snapshot = cache_of(tmp_path, SOURCE)
    target = f"{fresh()}/x"
    assert home.json("push", snapshot, target)["created"]
    assert not home.json("push", SOURCE, target)["created"]
    # The folder of the repository is no adapter; its snapshot is.
    said = home.run("push", snapshot.parents[1], target)
    assert said.status == 2
    assert "snapshots/abc" in said.err


def test_the_cache_from_the_world(home: Home, small_base: Path, tmp_path: Path) -> None:
    source = require_wild("peft-cache-symlinks")
    assert small_base
    copy = shutil.copytree(source / "cachelike", tmp_path / "cachelike", copy_function=shutil.copyfile)
    for link in (copy / "snapshots" / "abc").iterdir():
        if not link.is_symlink():  # the copy of the inputs holds a link's target as text
            text = link.read_text()
            link.unlink()
            link.symlink_to(text)
    pushed = home.json("push", copy / "snapshots" / "abc", f"{fresh()}/x")
    assert {file["path"] for file in pushed["version"]["files"]} == OWN


@pytest.mark.parametrize("where", ["outside", "sibling", "through"])
def test_links_out_of_a_hub_cache_are_refused(home: Home, tmp_path: Path, where: str) -> None:
    snapshot = cache_of(tmp_path, SOURCE)
    other = cache_of(tmp_path / "other", SOURCE).parents[1] / "blobs"
    (tmp_path / "secret").write_text("secret")
    link = snapshot / "README.md"
    if where == "outside":
        link.symlink_to("../../../secret")
    elif where == "sibling":
        link.symlink_to(other / "adapter_config.json.blob")
    else:
        (snapshot.parents[1] / "blobs" / "jump").symlink_to(tmp_path / "secret")
        link.symlink_to("../../blobs/jump")
    said = home.run("push", snapshot, f"{fresh()}/x", "--json")
    assert said.status == 6
    assert [finding["code"] for finding in said.document["findings"]] == ["link"]


BASES = {
    "meta": ["original/", "USE_POLICY.md", "LICENSE.txt"],
    "mistral": ["tekken.json", "tokenizer.model.v3", "consolidated.safetensors", "params.json"],
    "old": [
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
        *("onnx/", "openvino/", "coreml/", "metal/"),
    ],
    "gguf": ["model.Q4_K_M.gguf", "assets/", "figure.png", "modeling_llama.py", ".gitattributes", "eval.yaml"],
}
TAKEN = {"USE_POLICY.md", "LICENSE.txt", "tekken.json", "tokenizer.model.v3"}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("layout", BASES)
def test_a_base_is_taken_in_every_layout_of_the_hub(home: Home, tmp_path: Path, layout: str, sharded: bool) -> None:
    folder = make_base(tmp_path / "base", layers=1, hidden=8, vocab=16, heads=2, kv_heads=1, shards=2 if sharded else 1)
    own = {path.name for path in folder.iterdir()}
    for name in BASES[layout]:
        place(folder, name)
        if name in TAKEN:
            (folder / name).write_text("{}")
    with opened_below(folder) as opened:
        pushed = home.json("base", "add", f"{fresh()}/base", folder)
    taken = own | (TAKEN & set(BASES[layout]))
    assert {file["path"] for file in pushed["version"]["files"]} == taken
    assert pushed["left_out"] == sorted(set(BASES[layout]) - TAKEN)
    assert opened <= taken | {"."}
    assert home.run("base", "add", f"{fresh()}/base", folder, "--strict").status == (6 if pushed["left_out"] else 0)


def test_of_a_base_with_both_the_single_file_is_taken_as_transformers_does(home: Home, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", layers=1, hidden=8, vocab=16, heads=2, kv_heads=1, shards=2)
    make_base(tmp_path / "one", layers=1, hidden=8, vocab=16, heads=2, kv_heads=1)
    shutil.copyfile(tmp_path / "one" / "model.safetensors", folder / "model.safetensors")
    pushed = home.json("base", "add", f"{fresh()}/base", folder)
    assert {file["path"] for file in pushed["version"]["files"]} == {"config.json", "model.safetensors"}
    assert "model.safetensors.index.json" in pushed["left_out"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "save_pretrained"),
        ("original/", "convert_llama_weights_to_hf"),
        ("consolidated.safetensors", "model.safetensors.index.json"),
        ("tf_model.h5", "from_tf=True"),
        ("model-q4.gguf", "GGUF"),
    ],
)
def test_a_base_without_usable_weights_is_refused_with_the_way_to_convert(
    home: Home, tmp_path: Path, name: str, said: str
) -> None:
    folder = make_base(tmp_path / "base", layers=1, hidden=8, vocab=16, heads=2, kv_heads=1)
    (folder / "model.safetensors").unlink()
    place(folder, name)
    result = home.run("base", "add", f"{fresh()}/base", folder, "--json")
    assert result.status == 6
    (finding,) = result.document["findings"]
    assert name in finding["message"]
    assert said in result.document["hint"]


def test_the_cache_folder_of_a_base_is_answered_with_its_snapshot(home: Home, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", layers=1, hidden=8, vocab=16, heads=2, kv_heads=1)
    snapshot = cache_of(tmp_path, base)
    said = home.run("base", "add", "x", snapshot.parents[1])
    assert said.status == 2
    assert f"lora-reg base add x {snapshot}" in said.err


def test_the_base_that_the_config_names_is_taken(home: Home, tmp_path: Path) -> None:
    """By alias in any case of letters, and by the name of a registered base."""
    space = fresh()
    base = make_base(tmp_path / "base", seed=11)
    alias = f"Org{space}/Model-7B-hf"
    adapter = make_adapter(tmp_path / "adapter", base, base_model_name_or_path=alias.lower())
    home.ok("base", "add", f"{space}/small", base, "--alias", alias)
    said = home.ok("push", adapter, f"{space}/one")
    assert f"base: {space}/small, which adapter_config.json names as {alias.lower()}\n" in said.err
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in (f"{space}/Small", alias):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
        assert home.json("push", adapter, f"{space}/two")["version"]["base"]["name"] == "small"


def test_without_the_base_the_error_is_the_command_that_registers_it(home: Home, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", seed=12)
    owner = fresh("Meta-")
    adapter = make_adapter(tmp_path / "adapter", base, base_model_name_or_path=f"{owner}/Llama-2-7b-hf")
    said = home.run("push", adapter, f"{fresh()}/x")
    assert said.status == 3
    assert f"`lora-reg base add llama-2-7b hf://{owner}/Llama-2-7b-hf --alias {owner}/Llama-2-7b-hf`" in said.err
    # A base that lies on this machine is filled in, and the command works.
    adapter = make_adapter(tmp_path / "adapter", base, base_model_name_or_path=str(base))
    said = home.run("push", adapter, f"{fresh()}/x")
    words = shlex.split(re.findall("`(.*?)`", said.err)[0])
    assert words[4] == str(base)
    words[3] = f"{fresh()}/base"
    home.ok(*words[1:])
    home.ok("push", adapter, f"{fresh()}/x")


def test_a_base_that_cannot_be_told_is_asked_for(home: Home, tmp_path: Path) -> None:
    first, second = fresh(), fresh()
    base = make_base(tmp_path / "base", seed=13)
    for space, seed in ((first, 13), (second, 14)):
        home.ok("base", "add", f"{space}/base", make_base(tmp_path / space, seed=seed), "--alias", f"x/{first}")
    adapter = make_adapter(tmp_path / "adapter", base, base_model_name_or_path=f"x/{first}")
    third = fresh()
    said = home.run("push", adapter, f"{third}/x")
    assert said.status == 5
    assert first in said.err
    assert second in said.err
    # The adapter's own namespace decides.
    assert home.json("push", adapter, f"{first}/x")["version"]["base"]["namespace"] == first
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    said = home.run("push", adapter, f"{first}/x")
    assert said.status == 2
    assert "--base NAME" in said.err
    home.ok("push", adapter, f"{first}/x", "--base", f"{first}/base")
