"""The larger test bed: all of its adapters pass, all of its broken cases are refused for the fault they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import adapters
from tests.support.testbed import find_testbed, require_testbed

ALIAS = "lora-reg-fixture/tiny-llama-4m"
BED = find_testbed()

CASES = {
    "duplicate-json-keys": "bad-config",
    "empty-directory": "file-missing",
    "header-length-8gb": "bad-safetensors",
    "missing-lora-b": "missing-tensor",
    "module-not-in-base": "module-not-in-base",
    "nan-one-tensor": "nonfinite-value",
    "overwrites-base-norm": "overwrites-base",
    "pickle-bin": "pickle",
    "rank-differs": "rank-mismatch",
    "tar-path-traversal": "archive",
    "truncated-safetensors": "bad-safetensors",
    "wrong-shape-one-module": "shape-mismatch",
    "zero-adapter": "no-effect",
}


def found_in(folder: str, pattern: str) -> list[str]:
    if BED is None:
        return []
    return sorted(path.parent.relative_to(BED / folder).as_posix() for path in (BED / folder).glob(pattern))


@pytest.fixture(scope="module")
def bed():
    folder = require_testbed()
    base = adapters.fingerprint_of(folder / "base")
    return folder, base, adapters.base_reader(folder / "base")


def check(bed, files):
    _, base, read_base = bed
    return adapters.check_files(files, base, aliases=[ALIAS], read_base=read_base)


def test_the_base(bed):
    folder, base, _ = bed
    assert (base.architecture, base.model_type, base.embedding_rows, base.tied) == (
        "LlamaForCausalLM",
        "llama",
        2048,
        False,
    )
    assert len(base.tensors) == 39
    assert base.tokenizer is not None
    digest = json.loads((folder / "MANIFEST.json").read_bytes())
    assert base.chat_template is not None
    assert str(base.chat_template).removeprefix("sha256:") in json.dumps(digest)


@pytest.mark.parametrize("name", found_in("adapters", "**/adapter_config.json"))
def test_adapter_is_accepted(bed, name):
    result = check(bed, adapters.read_folder(bed[0] / "adapters" / name))
    assert result.findings == []
    assert result.facts is not None


@pytest.mark.parametrize("name", found_in("broken", "*/expect.json"))
def test_broken_case_is_refused(bed, name):
    folder = bed[0] / "broken" / name
    assert name in CASES, "a new case: name the code of the finding that it must give"
    payload = folder / "adapter"
    archive = folder / "adapter.tar"
    if archive.exists():
        files = {"adapter.tar": archive.read_bytes()}
    else:
        files = adapters.read_folder(payload) if payload.is_dir() else {}
    result = check(bed, files)
    assert CASES[name] in adapters.codes(result)
    assert not Path("/tmp/pwned").exists()
