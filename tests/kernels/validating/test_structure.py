"""The layer of structure looks at what a push would send."""

from __future__ import annotations

from pathlib import Path

from lora_kernels.validating.structure import structure
from lora_kernels.validating.subject import Subject
from tests.support.adapters import make_adapter, make_base


def test_what_a_trainer_left_is_not_looked_at(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", layers=1, hidden=8, vocab=16, heads=2, kv_heads=1)
    adapter = make_adapter(tmp_path / "adapter", base)
    subject = Subject(base, adapter, "sha256:version", "sha256:base")
    for name in ("training_args.bin", "checkpoint-5/optimizer.pt", ".git/config"):
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_bytes(b"PK\x03\x04")
    found, facts = structure(subject)
    assert (found.state, found.findings) == ("passed", [])
    assert facts is not None
    (adapter / "unknown.bin").write_bytes(b"PK\x03\x04")
    assert structure(subject)[0].state == "failed"
