"""Import from a Hub: the Hub dialect of a second registry."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lora_reg.client import Client
from lora_reg.config import Settings
from lora_reg.importing import hub_base
from lora_reg.importing.hub import Hub, connect
from lora_reg.importing.hub_source import HubSource
from lora_reg.importing.run import Options, Row, run
from lora_reg.progress import Silent
from tests.client.importing.conftest import ADAPTERS, ORGANISATION
from tests.support.adapters import make_base
from tests.support.command import ALIAS, TINY, Home, fresh
from tests.support.front import Answer, Front
from tests.support.service import InProcess


def outcomes(document: Any) -> dict[str, str]:
    return {row["source"].rpartition("/")[2]: row["outcome"] for row in document["rows"]}


def test_an_organisation_comes_once(home: Home, registry: InProcess, hub: str, organisation: Home) -> None:
    namespace = fresh()
    source = f"hf://{ORGANISATION}"
    first = home.json("import", source, "--endpoint", hub, "--to", namespace, "--tag", "candidate", "--meta", "run=7")
    assert first["schema"] == "lora-reg/import/1"
    assert outcomes(first) == dict.fromkeys(ADAPTERS, "created") | {"tiny": "not an adapter"}
    assert all(row["received"] > 0 for row in first["rows"] if row["outcome"] == "created")
    for name in ADAPTERS:
        here = home.json("show", f"{namespace}/{name}:candidate")
        there = organisation.json("show", f"{ORGANISATION}/{name}")
        assert {file["path"]: file["digest"] for file in here["files"]} == {
            file["path"]: file["digest"] for file in there["files"]
        }
        assert here["meta"]["import.source"] == f"hf://{ORGANISATION}/{name}"
        assert here["meta"]["import.revision"] == there["commit"]
        assert here["meta"]["import.format"] == "peft"
        assert here["meta"]["import.digest"].startswith("sha256:")
        assert here["meta"]["run"] == "7"
    with Front(hub.removesuffix("/hf")) as there_, Front(registry.url) as here_:
        again = Home(home.folder, here_.url)
        second = again.json("import", source, "--endpoint", f"{there_.url}/hf", "--to", namespace, "--tag", "candidate")
        assert outcomes(second) == dict.fromkeys(ADAPTERS, "already imported") | {"tiny": "not an adapter"}
        assert here_.paths("POST") == here_.paths("PUT") == []
        assert not [path for path in there_.paths("GET") if "/resolve/" in path]


@pytest.mark.parametrize("author", ["", ORGANISATION])
def test_the_adapters_of_a_base(home: Home, hub: str, author: str) -> None:
    found = home.json("import", f"hf://{author}?base={ALIAS}", "--endpoint", hub, "--to", fresh(), "--dry-run")
    assert outcomes(found) == dict.fromkeys(ADAPTERS, "would come")
    said = home.run("import", f"hf://{author}?base=somebody/else", "--endpoint", hub)
    assert said.status == 3
    assert "holds no adapter" in said.err


def test_the_same_content_under_another_source_is_not_sent_again(home: Home, hub: str) -> None:
    namespace = fresh()
    home.ok("import", f"hf://{ORGANISATION}/two", "--endpoint", hub, "--to", f"{namespace}/copy")
    row = home.json("import", f"hf://{ORGANISATION}/two", "--endpoint", hub, "--to", f"{namespace}/again")["rows"][0]
    assert (row["outcome"], row["sent"]) == ("created", 0)
    assert row["target"] == f"{namespace}/again:v1"


def test_one_repository_at_a_revision(home: Home, hub: str, organisation: Home) -> None:
    namespace = fresh()
    row = home.json("import", f"hf://{ORGANISATION}/one@v1", "--endpoint", hub, "--to", namespace)["rows"][0]
    there = organisation.json("show", f"{ORGANISATION}/one:v1")
    assert row["revision"] == there["commit"]
    row = home.json("import", f"hf://{ORGANISATION}/one", "--endpoint", hub, "--to", namespace)["rows"][0]
    assert row["target"] == f"{namespace}/one:v2"


def test_what_did_not_come_is_said_with_the_reason(home: Home, hub: str) -> None:
    said = home.run("import", f"hf://{ORGANISATION}/tiny", "--endpoint", hub, "--to", fresh())
    assert said.status == 6
    assert "not an adapter" in said.out
    assert "holds a model" in said.out
    said = home.run("import", f"hf://{ORGANISATION}/nothing", "--endpoint", hub, "--to", fresh())
    assert said.status == 3
    assert "has no hf://acme/nothing" in said.err
    said = home.run("import", "hf://nobody", "--endpoint", hub)
    assert said.status == 3
    assert "holds no adapter" in said.err


def test_a_base_that_is_not_registered_is_named_with_the_command(
    elsewhere: InProcess, hub: str, tmp_path: Path
) -> None:
    from tests.support import service

    with service.in_process(tmp_path / "empty") as empty:
        home = Home(tmp_path / "home", empty.url)
        said = home.run("import", f"hf://{ORGANISATION}/two", "--endpoint", hub)
        assert said.status == 3
        assert "lora-reg base add tiny-llama hf://lora-reg-examples/tiny-llama" in said.err
        home.ok(
            "base",
            "add",
            "tiny-llama",
            f"hf://{ORGANISATION}/tiny",
            "--endpoint",
            hub,
            "--alias",
            "lora-reg-examples/tiny-llama",
        )
        assert home.json("import", f"hf://{ORGANISATION}/two", "--endpoint", hub)["rows"][0]["outcome"] == "created"


def test_a_dry_run_sends_nothing(home: Home, registry: InProcess, hub: str) -> None:
    with Front(registry.url) as front:
        told = Home(home.folder, front.url).json(
            "import", f"hf://{ORGANISATION}", "--endpoint", hub, "--to", fresh(), "--dry-run"
        )
        assert front.paths("POST") == front.paths("PUT") == []
    assert outcomes(told) == dict.fromkeys(ADAPTERS, "would come") | {"tiny": "not an adapter"}


def test_a_cut_download_resumes_where_it_was(home: Home, elsewhere: InProcess) -> None:
    asked: list[str] = []

    def harm(answer: Answer) -> None:
        if answer.path.endswith("/adapter_model.safetensors") and "/resolve/" in answer.path:
            asked.append(answer.asked.get("range", "whole"))
            if len(asked) < 4:
                answer.cut = 1000

    with Front(elsewhere.url, harm) as front:
        row = home.json("import", f"hf://{ORGANISATION}/three", "--endpoint", f"{front.url}/hf", "--to", fresh())[
            "rows"
        ][0]
    assert row["outcome"] == "created"
    assert asked == ["whole", "bytes=1000-", "bytes=2000-", "bytes=3000-"]


class Interrupting(Silent):
    """Interrupts, as Ctrl-C does, after some files were begun."""

    def __init__(self, after: int) -> None:
        self.left = after

    def begin(self, what: str, total: int | None, *, unit: str = "B") -> None:  # noqa: ARG002
        if what.startswith("Fetching"):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def test_an_interrupted_import_goes_on_where_it_was(home: Home, registry: InProcess, elsewhere: InProcess) -> None:
    namespace = fresh()
    settings = Settings(server=registry.url, cache=home.cache)
    found: list[Row] = []
    with Front(elsewhere.url) as front, Client(settings=settings) as client:
        source = HubSource(Hub(f"{front.url}/hf", None), author=ORGANISATION)
        with pytest.raises(KeyboardInterrupt):
            # The first adapter has two files; of the second, two of three came.
            found.extend(run(client, source, Options(to=namespace), progress=Interrupting(4)))
        assert [row.outcome for row in found] == ["created"]
        before = [path for path in front.paths("GET") if "/resolve/" in path]
        again = list(run(client, source, Options(to=namespace)))
        after = [path for path in front.paths("GET") if "/resolve/" in path]
        source.close()
    assert sorted(row.outcome for row in again) == ["already imported", "created", "created", "not an adapter"]
    assert len(after) == len(set(after)) == 3 * len(ADAPTERS) - 1  # `one` has no README in its newest version
    assert set(before) < set(after)
    assert not [path for path in (home.cache / "imports").iterdir() if path.is_dir()]


def test_a_damaged_file_is_not_taken(home: Home, elsewhere: InProcess) -> None:
    def harm(answer: Answer) -> None:
        if answer.path.endswith("/adapter_model.safetensors"):
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])

    with Front(elsewhere.url, harm) as front:
        said = home.run("import", f"hf://{ORGANISATION}/two", "--endpoint", f"{front.url}/hf", "--to", fresh())
    assert said.status == 7
    assert "the source states" in said.out


def test_a_token_is_sent_to_its_own_host_alone(home: Home, elsewhere: InProcess, tmp_path: Path) -> None:
    with Front(elsewhere.url) as store:

        def harm(answer: Answer) -> None:
            if "/resolve/" in answer.path and answer.status == 200:
                answer.status, answer.body = 302, b""
                answer.headers |= {"location": store.url + answer.path, "content-length": "0"}

        with Front(elsewhere.url, harm) as front:
            (tmp_path / "token").write_text("hf_secret\n")
            row = home.json(
                *("import", f"hf://{ORGANISATION}/two", "--endpoint", f"{front.url}/hf"),
                *("--source-token-file", str(tmp_path / "token"), "--to", fresh()),
            )["rows"][0]
            assert row["outcome"] == "created"
            assert all(headers["authorization"] == "Bearer hf_secret" for _, _, headers in front.log)
        assert store.log
        assert not [headers for _, _, headers in store.log if "authorization" in headers]


@pytest.mark.parametrize(
    ("environment", "endpoint", "token"),
    [
        ({"HF_TOKEN": "t"}, None, "t"),
        ({"HF_TOKEN": "t", "HF_ENDPOINT": "http://hub.example"}, None, "t"),
        ({"HF_TOKEN": "t", "HF_ENDPOINT": "http://hub.example"}, "http://hub.example", "t"),
        ({"HF_TOKEN": "t"}, "http://hub.example", None),
        ({"HF_TOKEN": "t", "HF_ENDPOINT": "http://hub.example"}, "https://huggingface.co", "stored"),
        ({}, None, "stored"),
        ({}, "http://huggingface.co", None),
        ({"HF_ENDPOINT": "http://hub.example"}, None, None),
    ],
)
def test_whose_token_goes_where(
    environment: dict[str, str], endpoint: str | None, token: str | None, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("stored\n")
    with mock.patch.dict(os.environ, environment | {"HF_HOME": str(tmp_path)}, clear=True):
        hub = connect(endpoint, None)
    assert hub.transport._token == token
    hub.close()


@pytest.fixture(scope="module")
def sharded(organisation: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of four shards at the Hub, with a tokenizer."""
    folder = make_base(tmp_path_factory.mktemp("sharded"), hidden=128, intermediate=256, vocab=512, layers=4, shards=4)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "generation_config.json").write_text("{}")
    organisation.ok("base", "add", f"{ORGANISATION}/sharded", folder)
    return folder


def test_a_base_of_a_hub_has_the_pin_of_its_folder(home: Home, elsewhere: InProcess, sharded: Path) -> None:
    namespace = fresh()
    weights = {path.name: path.stat().st_size for path in sharded.glob("*.safetensors")}
    with Front(elsewhere.url) as front:
        said = home.ok(
            "base", "add", f"{namespace}/far", f"hf://{ORGANISATION}/sharded", "--endpoint", f"{front.url}/hf", "--json"
        )
        ranges = [headers.get("range") for _, path, headers in front.log if path.endswith(".safetensors")]
    far = said.document["version"]
    near = home.json("base", "add", f"{namespace}/near", sharded, "--manifest-only")["version"]
    assert far["digest"] == near["digest"]
    assert far["weights_absent"] is True
    assert len(ranges) == 4
    assert all(asked == f"bytes=0-{64 * 1024 - 1}" for asked in ranges)
    assert sum(weights.values()) > 4 * len(ranges) * 64 * 1024
    assert f"{ORGANISATION}/sharded" in home.json("base", "show", f"{namespace}/far")["repository"]["aliases"]
    assert "--weights" in said.err
    # The weights follow, as the same version.
    whole = home.json(
        "base",
        "add",
        f"{namespace}/far",
        f"hf://{ORGANISATION}/sharded",
        "--endpoint",
        f"{elsewhere.url}/hf",
        "--weights",
    )
    assert (whole["weights_added"], whole["version"]["digest"]) == (True, near["digest"])
    assert whole["version"]["weights_absent"] is False


def siblings(answer: Answer, *more: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """Change the files that the Hub lists."""
    document = json.loads(answer.body)
    kept = [item for item in document["siblings"] if not item["rfilename"].endswith(without or ("nothing",))]
    answer.body = json.dumps(document | {"siblings": [*kept, *more]}).encode()
    answer.headers["content-length"] = str(len(answer.body))


def test_what_lies_beside_a_base_of_a_hub_is_left_out_unfetched(
    home: Home, elsewhere: InProcess, sharded: Path
) -> None:
    others = ("pytorch_model.bin", "original/consolidated.00.pth", "consolidated.safetensors", "assets/logo.png")

    def harm(answer: Answer) -> None:
        if "/api/models/" in answer.path:
            siblings(
                answer, *({"rfilename": name, "size": 9, "lfs": {"sha256": "0" * 64, "size": 9}} for name in others)
            )

    near = home.json("base", "add", f"{fresh()}/near", sharded, "--manifest-only")["version"]
    with Front(elsewhere.url, harm) as front:
        far = home.json(
            "base", "add", f"{fresh()}/far", f"hf://{ORGANISATION}/sharded", "--endpoint", f"{front.url}/hf"
        )
        assert not [path for path in front.paths("GET") if path.endswith(others)]
    assert far["version"]["digest"] == near["digest"]
    assert far["left_out"] == sorted(others)


def test_a_base_of_a_hub_without_safetensors_is_refused_with_the_way_to_convert(
    home: Home, elsewhere: InProcess, sharded: Path
) -> None:
    def harm(answer: Answer) -> None:
        if "/api/models/" in answer.path:
            pickled = {"rfilename": "pytorch_model.bin", "size": 9, "lfs": {"sha256": "0" * 64, "size": 9}}
            siblings(answer, pickled, without=(".safetensors", "index.json"))

    with Front(elsewhere.url, harm) as front:
        said = home.run(
            "base", "add", f"{fresh()}/far", f"hf://{ORGANISATION}/sharded", "--endpoint", f"{front.url}/hf"
        )
    assert said.status == 6
    assert "pytorch_model.bin" in said.err
    assert "save_pretrained" in said.err


def test_weights_that_a_hub_keeps_in_git_are_fetched_for_their_sha256(
    home: Home, elsewhere: InProcess, sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(answer: Answer) -> None:
        if "/api/models/" in answer.path:
            document = json.loads(answer.body)
            for sibling in document["siblings"]:
                sibling.pop("lfs", None)
            answer.body = json.dumps(document).encode()
            answer.headers["content-length"] = str(len(answer.body))

    near = home.json("base", "add", f"{fresh()}/near", sharded, "--manifest-only")["version"]
    add = ("base", "add", f"{fresh()}/far", f"hf://{ORGANISATION}/sharded")
    with Front(elsewhere.url, harm) as front:
        far = home.json(*add, "--endpoint", f"{front.url}/hf")["version"]
        assert (far["digest"], far["weights_absent"]) == (near["digest"], True)
        assert far["weights_at"]["endpoint"] == f"{front.url}/hf"
        # Longer ones need their sha256 from the Hub, or to be fetched anyway.
        monkeypatch.setattr(hub_base, "_UNSTATED", 1000)
        said = home.run(*add, "--endpoint", f"{front.url}/hf")
        assert said.status == 6
        assert "does not state size and sha256" in said.err
        whole = home.json(*add, "--endpoint", f"{front.url}/hf", "--weights")
    assert (whole["weights_added"], whole["version"]["digest"]) == (True, near["digest"])


def test_usage(home: Home, hub: str) -> None:
    for source in (
        "hf://",
        "hf://a/b/c",
        "hf://acme/one@",
        "hf://acme?colour=red",
        "s3://",
        "ftp://x",
        "nothing",
        "hf://../x",
    ):
        said = home.run("import", source, "--endpoint", hub)
        assert said.status == 2, (source, said.err)
    said = home.run("import", "wandb:acme/run/adapter:v1")
    assert said.status == 2
    assert "wandb artifact get" in said.err
    assert home.run("base", "add", "x", str(TINY), "--weights").status == 2
