"""`lora-reg` in this process, with an environment of its own; and adapters to push."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from lora_reg.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "tiny"
ALIAS = "lora-reg-examples/tiny-llama"


@dataclass(frozen=True)
class Said:
    """What a command line did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Home:
    """A user's machine: a folder for settings and cache, and the registry it talks to."""

    folder: Path
    server: str

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_REG_", "XDG_"))}
        return {
            **clean,
            "LORA_REG_SERVER": self.server,
            "LORA_REG_CACHE": str(self.cache),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("client", "registry", "kernels")),
        }

    def run(self, *arguments: str | Path) -> Said:
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = run([str(argument) for argument in arguments])
        return Said(status, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str | Path) -> Said:
        said = self.run(*arguments)
        assert said.status == 0, said.err
        return said

    def json(self, *arguments: str | Path) -> Any:
        return self.ok(*arguments, "--json").document


def fresh(prefix: str = "ns") -> str:
    """A namespace that nobody has used."""
    return f"{prefix}{secrets.token_hex(5)}"


def variant(folder: Path, source: Path = TINY / "adapters" / "queries-v1", *, seed: int) -> Path:
    """A copy of an adapter with other weights, so that it is other content; still a good adapter."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    weights = folder / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    # The lowest bits of one float32 of the data: a value that stays finite.
    raw[8 + length] = (raw[8 + length] ^ (1 + seed % 127)) & 0xFF
    weights.write_bytes(raw)
    return folder


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Exactly these variables, for the length of a block."""
    with mock.patch.dict(os.environ, values, clear=True):
        yield
