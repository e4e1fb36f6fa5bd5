"""What the package gives, and what it must not load."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_contract
import lora_reg
from lora_contract.errors import ERRORS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "numpy",
    "sqlalchemy",
    "sqlmodel",
    "boto3",
    "litestar",
    "cryptography",
    "lora_registry",
    "lora_kernels",
}


def loaded(code: str) -> set[str]:
    script = f"import sys\nsys.path.insert(0, {str(ROOT / 'client')!r})\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_all_names_are_there_and_nothing_else_is_promised() -> None:
    assert lora_reg.__all__ == sorted(lora_reg.__all__)
    for name in lora_reg.__all__:
        assert getattr(lora_reg, name) is not None
    assert set(lora_reg._HOMES) | {"__version__"} == set(lora_reg.__all__)
    assert dir(lora_reg) == lora_reg.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lora_reg.nothing


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert not loaded("import lora_reg") & (HEAVY | {"httpx", "httpx2", "msgspec", "click", "rich"})


def test_the_program_starts_with_click_alone() -> None:
    code = "from lora_reg.cli.main import run; assert run(['--version']) == 0; assert run(['--help']) == 0"
    assert not loaded(code) & (HEAVY | {"httpx", "httpx2", "msgspec", "rich", "ssl"})


def test_no_module_of_the_client_loads_what_is_heavy() -> None:
    names = [module.name for module in pkgutil.walk_packages(lora_reg.__path__, "lora_reg.")]
    names.remove("lora_reg.integrations.trainer")  # extends a class of transformers, for those who train with it
    names += [module.name for module in pkgutil.walk_packages(lora_contract.__path__, "lora_contract.")]
    assert len(names) > 100
    assert not loaded("\n".join(f"import {name}" for name in names)) & HEAVY


def test_the_version_is_the_distribution_s() -> None:
    assert importlib.metadata.version("lora-reg") == lora_reg.__version__


def test_only_the_output_prints() -> None:
    folder = Path(lora_reg.__file__).parent
    printing = [
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if re.search(r"\bprint\(", path.read_text("utf-8"))
    ]
    assert printing == ["cli/output.py"]


def test_every_error_has_an_exit_status_of_the_table() -> None:
    assert {kind.exit for kind in ERRORS.values()} <= set(range(1, 11))
    assert importlib.import_module("lora_reg.cli.main").INTERRUPTED == 130


def test_a_user_s_three_lines_have_types(tmp_path: Path) -> None:
    """`py.typed` in every package, and lazy names that a type checker sees through."""
    (tmp_path / "three.py").write_text(
        'from lora_reg import Client\nc = Client("http://127.0.0.1:8750")\nreveal_type(c.whoami())\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "three.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Revealed type is "lora_contract.wire.common.Identity"' in done.stdout
    for package in ("client/lora_contract", "client/lora_reg", "registry/lora_registry", "kernels/lora_kernels"):
        assert (ROOT / package / "py.typed").exists()
