"""Import of folders: trees of adapters, other formats, PyTorch files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_contract.base import BaseFingerprint
from lora_contract.errors import RegistryError
from lora_contract.modules import modules_of
from lora_reg.importing import pickles
from lora_reg.importing.formats.tensors import dump, load
from lora_reg.importing.grouping import group
from lora_reg.importing.items import SourceFile
from lora_reg.importing.names import repository_name
from tests.support.adapters import fingerprint_of, make_base
from tests.support.command import ALIAS, TINY, Home, fresh, variant
from tests.support.wild import require_wild

SOURCE = TINY / "adapters" / "queries-v1"


@pytest.fixture(scope="module")
def base() -> BaseFingerprint:
    return fingerprint_of(TINY / "base")


def test_a_folder_of_folders(home: Home, tmp_path: Path) -> None:
    tree, namespace = tmp_path / "runs", fresh()
    variant(tree / "Team A" / "SQL writer", seed=211)
    variant(tree / "b", seed=212)
    variant(tree / "b" / "checkpoint-10", seed=213)
    variant(tree / "c" / "checkpoint-20", seed=214)
    (tree / "b" / "training_args.bin").write_bytes(b"PK\x03\x04")
    (tree / "b" / "notes.xyz").write_text("x")
    (tree / "model").mkdir()
    (tree / "model" / "config.json").write_text("{}")
    (tree / "model" / "model.safetensors").write_bytes(b"x")
    (tree / "broken").mkdir()
    (tree / "broken" / "adapter_config.json").write_text('{"colour": "red"}')
    said = home.run("import", tree, "--to", namespace, "--json")
    rows = {row["source"]: row for row in said.document["rows"]}
    assert {source: row["outcome"] for source, row in rows.items()} == {
        "folder:runs/Team A/SQL writer": "created",
        "folder:runs/b": "created",
        "folder:runs/c/checkpoint-20": "created",
        "folder:runs/broken": "failed",
    }
    assert said.status == 6
    assert "no known format" in rows["folder:runs/broken"]["reason"]
    assert rows["folder:runs/b"]["left_out"] == ["notes.xyz", "training_args.bin"]
    assert rows["folder:runs/Team A/SQL writer"]["target"].partition("/")[2].lower() == "team-a-sql-writer:v1"
    assert [file["path"] for file in home.json("show", f"{namespace}/b")["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = home.run("import", tree, "--to", namespace, "--json")
    assert [row["outcome"] for row in again.document["rows"] if row["outcome"] != "failed"] == ["already imported"] * 3
    assert sum(row["sent"] for row in again.document["rows"]) == 0
    text = home.run("import", tree, "--to", namespace)
    assert "3 of 4 adapters came" in text.out


def mlx_folder(folder: Path, base: BaseFingerprint, model: str) -> Path:
    """The adapter as mlx-lm would have written it."""
    given, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    turned = {
        name.removeprefix("base_model.model.")
        .replace("lora_A.weight", "lora_a")
        .replace("lora_B.weight", "lora_b"): item.transposed()
        for name, item in given.items()
    }
    config = json.loads((SOURCE / "adapter_config.json").read_bytes())
    scale = config["lora_alpha"] / config["r"]
    folder.mkdir(parents=True)
    (folder / "adapters.safetensors").write_bytes(dump(turned))
    (folder / "0000100_adapters.safetensors").write_bytes(dump(turned))
    document = {
        "fine_tune_type": "lora",
        "model": model,
        "lora_parameters": {"rank": config["r"], "scale": scale, "dropout": 0.0},
    }
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def test_an_adapter_of_mlx_lm_is_the_one_that_peft_would_have_written(
    home: Home, base: BaseFingerprint, tmp_path: Path
) -> None:
    namespace = fresh()
    folder = mlx_folder(tmp_path / "mlx", base, ALIAS)
    row = home.json("import", folder, "--to", namespace)["rows"][0]
    assert (row["outcome"], row["format"], row["left_out"]) == ("created", "mlx-lm", ["0000100_adapters.safetensors"])
    pulled = tmp_path / "pulled"
    home.ok("pull", f"{namespace}/mlx", "-o", pulled)
    original, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    assert load((pulled / "adapter_model.safetensors").read_bytes())[0] == original
    made, given = (json.loads((place / "adapter_config.json").read_bytes()) for place in (pulled, SOURCE))
    assert {key: made[key] for key in ("r", "lora_alpha", "base_model_name_or_path")} == {
        key: given[key] for key in ("r", "lora_alpha", "base_model_name_or_path")
    }
    assert set(made["target_modules"]) == set(given["target_modules"])


def test_the_mlx_adapter_of_the_wild_comes_as_it_lies(home: Home, tmp_path: Path) -> None:
    space = fresh()
    base = make_base(tmp_path / "base")
    home.ok("base", "add", f"{space}/llama", base, "--alias", "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit")
    row = home.json("import", require_wild("mlx-lm") / "mlx", "--to", space, "--base", f"{space}/llama")["rows"][0]
    assert (row["outcome"], row["format"], row["left_out"]) == ("created", "mlx-lm", ["0000100_adapters.safetensors"])
    facts = home.json("show", f"{space}/mlx")["facts"]
    assert (facts["r"], facts["alpha"]) == (8, 160.0)


def test_a_kohya_file_needs_the_base_that_has_its_modules(home: Home, base: BaseFingerprint, tmp_path: Path) -> None:
    given, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    named = {}
    for name, item in given.items():
        path, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        assert path in modules_of(base).modules
        named[f"lora_te_{path.replace('.', '_')}.lora_{'down' if side == 'A' else 'up'}.weight"] = item
    (tmp_path / "style.safetensors").write_bytes(dump(named))
    said = home.run("import", tmp_path / "style.safetensors", "--to", fresh())
    assert said.status == 2
    assert "--base" in said.err
    row = home.json("import", tmp_path / "style.safetensors", "--to", fresh(), "--base", "tiny")["rows"][0]
    assert (row["outcome"], row["format"]) == ("created", "diffusion (style.safetensors)")
    (tmp_path / "other.safetensors").write_bytes(dump({"weight": next(iter(given.values()))}))
    assert home.run("import", tmp_path / "other.safetensors", "--to", fresh(), "--base", "tiny").status == 6


def test_the_parts_of_a_lora_file_are_adapters_of_their_own(home: Home, tmp_path: Path) -> None:
    given, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    named = {}
    for name, item in given.items():
        path, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        for part in ("unet", "te2"):
            named[f"lora_{part}_{path.replace('.', '_')}.lora_{'down' if side == 'A' else 'up'}.weight"] = item
    (tmp_path / "style.safetensors").write_bytes(dump(named))
    namespace = fresh()
    rows = home.json("import", tmp_path / "style.safetensors", "--to", namespace, "--base", "tiny")["rows"]
    assert [row["target"] for row in rows] == [f"{namespace}/style-text-encoder-2:v1", f"{namespace}/style:v1"]
    again = home.json("import", tmp_path / "style.safetensors", "--to", namespace, "--base", "tiny")["rows"]
    assert [row["outcome"] for row in again] == ["already imported"]


def test_an_adapter_of_adapterhub(home: Home, tmp_path: Path) -> None:
    import torch

    given, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    config = json.loads((SOURCE / "adapter_config.json").read_bytes())
    state = {}
    for name, item in given.items():
        path, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        state[f"{path}.loras.task.lora_{side}"] = torch.frombuffer(bytearray(item.data), dtype=torch.float32).reshape(
            item.shape
        )
    folder = tmp_path / "task"
    folder.mkdir()
    torch.save(state, folder / "pytorch_adapter.bin")
    method = {"architecture": "lora", "r": config["r"], "alpha": config["lora_alpha"], "composition_mode": "add"}
    document = {"config": method, "model_class": "LlamaAdapterModel", "model_name": ALIAS, "name": "task"}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    namespace = fresh()
    row = home.json("import", folder, "--to", namespace)["rows"][0]
    assert (row["outcome"], row["format"]) == ("created", "adapterhub (pytorch_adapter.bin)")
    home.ok("pull", f"{namespace}/task", "-o", tmp_path / "pulled")
    assert load((tmp_path / "pulled" / "adapter_model.safetensors").read_bytes())[0] == given


def bin_folder(folder: Path) -> Path:
    import torch

    given, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    state = {
        name: torch.frombuffer(bytearray(item.data), dtype=torch.float32).reshape(item.shape)
        for name, item in given.items()
    }
    folder.mkdir()
    torch.save(state, folder / "adapter_model.bin")
    shutil.copyfile(SOURCE / "adapter_config.json", folder / "adapter_config.json")
    return folder


def test_a_pytorch_file_is_read_in_a_child(home: Home, tmp_path: Path) -> None:
    namespace = fresh()
    row = home.json("import", bin_folder(tmp_path / "old"), "--to", namespace)["rows"][0]
    assert (row["outcome"], row["format"]) == ("created", "peft (adapter_model.bin)")
    home.ok("pull", f"{namespace}/old", "-o", tmp_path / "pulled")
    original, _ = load((SOURCE / "adapter_model.safetensors").read_bytes())
    assert load((tmp_path / "pulled" / "adapter_model.safetensors").read_bytes())[0] == original
    assert home.json("import", tmp_path / "old", "--to", namespace)["rows"][0]["outcome"] == "already imported"


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/pwned",)

    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({"x": Hostile()}))
    with pytest.raises(RegistryError, match="weights-only loader refuses it") as caught:
        pickles.to_safetensors(tmp_path / "adapter_model.bin", tmp_path / "out")
    assert caught.value.code == "rejected"
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out").exists()


def test_the_child_has_no_network_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import os, socket, sys\n"
        "from lora_reg.importing import pickle_child\n"
        "pickle_child._confine(0)\n"
        f"open({str(tmp_path / 'environment')!r}, 'w').write(repr(dict(os.environ)))\n"
        "try:\n    socket.create_connection(('127.0.0.1', int(open(sys.argv[1]).read())), 2)\n"
        "except OSError as error:\n    sys.exit(f'refused: {error.strerror}')\n"
    )
    import socket

    monkeypatch.setattr(pickles, "CHILD", probe)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (tmp_path / "port.bin").write_text(str(listener.getsockname()[1]))
        with pytest.raises(RegistryError, match="refused: Network is unreachable"):
            pickles.to_safetensors(tmp_path / "port.bin", tmp_path / "out")
    assert "hf_secret" not in (tmp_path / "environment").read_text()


def test_without_torch_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "find_spec", lambda _name: None)
    with pytest.raises(RegistryError, match="PyTorch is not installed") as caught:
        pickles.require_torch("adapter_model.bin")
    assert caught.value.code == "usage"


def test_importing_a_folder_loads_no_torch(home: Home, tmp_path: Path) -> None:
    variant(tmp_path / "light", seed=221)
    script = (
        "import sys\nfrom lora_reg.cli.main import run\n"
        f"status = run(['import', {str(tmp_path / 'light')!r}, '--to', {fresh()!r}])\n"
        "sys.exit(status or bool({'torch', 'numpy', 'boto3'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], env=home.environment, check=False).returncode == 0


def files(*paths: str) -> list[SourceFile]:
    return [SourceFile(path, 1) for path in paths]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), [""]),
        (("adapter_config.json", "checkpoint-5/adapter_config.json", "checkpoint-5/optimizer.pt"), [""]),
        (("a/checkpoint-5/adapter_config.json", "a/checkpoint-10/adapter_config.json"), ["a/checkpoint-10", "a/checkpoint-5"]),
        (("a/style.safetensors", "a/ink.safetensors"), ["a/ink", "a/style"]),
        (("a/pytorch_lora_weights.safetensors",), ["a"]),
        (("a/config.json", "a/model.safetensors", ".cache/adapter_config.json"), []),
        (("model/MLmodel", "model/peft/adapter_config.json", "model/peft/adapter_model.safetensors"), ["model/peft"]),
    ],
)  # fmt: skip
def test_folders_that_hold_an_adapter(paths: tuple[str, ...], found: list[str]) -> None:
    assert sorted(path for path, _ in group(files(*paths))) == found


@pytest.mark.parametrize(
    ("text", "name"),
    [("sql", "sql"), ("SQL writer (v2)", "sql-writer-v2"), ("Qwen2.5-7B__LoRA", "qwen2.5-7b-lora"), ("-x-", "x"), ("a" * 80, "a" * 64)],
)  # fmt: skip
def test_names(text: str, name: str) -> None:
    assert repository_name(text).lower() == name


def test_a_name_of_nothing_is_refused() -> None:
    with pytest.raises(RegistryError):
        repository_name("日本")
