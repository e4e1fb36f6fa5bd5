"""Where settings come from, and how tokens are kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lora_contract.errors import RegistryError
from lora_reg import credentials
from lora_reg.config import load_settings

A_TOKEN = "hf_" + "a" * 40


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def test_defaults(user: dict[str, str], tmp_path: Path) -> None:
    found = load_settings(environ=user, folder=tmp_path)
    assert (found.server, found.token, found.namespace, found.offline) == (
        "http://127.0.0.1:8750",
        None,
        "default",
        False,
    )
    assert found.cache == tmp_path / "cache" / "lora-reg"


def test_flags_before_environment_before_project_before_user(user: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    _write(tmp_path / "config/lora-reg/config.toml", 'server = "http://user"\nnamespace = "user"\noffline = true\n')
    assert load_settings(environ=user, folder=project).server == "http://user"
    _write(project / ".lora-reg.toml", 'server = "http://project"\nnamespace = "project"\n')
    found = load_settings(environ=user, folder=project)
    assert (found.server, found.namespace, found.offline) == ("http://project", "project", True)
    user |= {"LORA_REG_SERVER": "http://environment/", "LORA_REG_OFFLINE": "0", "LORA_REG_CACHE": str(tmp_path / "c")}
    found = load_settings(environ=user, folder=project)
    assert (found.server, found.namespace, found.offline) == ("http://environment", "project", False)
    assert found.cache == tmp_path / "c"
    assert load_settings(server="http://flag", environ=user, folder=project).server == "http://flag"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("token = 'x'", "contains a token"),
        ("colour = 'red'", "'colour'"),
        ("server = ", "cannot be read"),
        ("server = 'ftp://h'", "is not a server URL"),
        ("server = 'http://user:pw@h'", "contains a user"),
        ("offline = 'maybe'", "expected true or false"),
    ],
)
def test_a_bad_file_is_refused_by_name(user: dict[str, str], tmp_path: Path, text: str, names: str) -> None:
    _write(tmp_path / ".lora-reg.toml", text)
    with pytest.raises(RegistryError) as caught:
        load_settings(environ=user, folder=tmp_path)
    assert caught.value.code == "usage"
    assert names in caught.value.detail
    assert "pw" not in caught.value.detail


def test_a_token_is_kept_by_server_in_a_private_file(user: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "config" / "lora-reg"
    credentials.store(folder, "https://one.example", A_TOKEN)
    credentials.store(folder, "https://two.example", None)
    path = folder / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in folder.iterdir()] == ["credentials.json"]
    assert load_settings(environ=user, folder=tmp_path).server == "https://two.example"
    one = load_settings(server="https://one.example", environ=user, folder=tmp_path)
    assert one.token == A_TOKEN
    assert A_TOKEN not in repr(one)
    assert A_TOKEN not in repr(credentials.read(folder))
    assert load_settings(server="https://else.example", environ=user, folder=tmp_path).token is None
    overriding = user | {"LORA_REG_TOKEN": "from-environment"}
    assert load_settings(server="https://one.example", environ=overriding, folder=tmp_path).token == "from-environment"
    assert credentials.forget(folder, "https://one.example")
    assert load_settings(server="https://one.example", environ=user, folder=tmp_path).token is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_not_used(user: dict[str, str], tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "config" / "lora-reg"
    credentials.store(folder, "https://one.example", A_TOKEN)
    os.chmod(folder / "credentials.json", mode)
    with pytest.raises(RegistryError) as caught:
        load_settings(environ=user, folder=tmp_path)
    assert caught.value.code == "unauthenticated"
    assert caught.value.kind.exit == 4
    assert f"{mode:04o}" in caught.value.detail
    assert "chmod 600" in caught.value.hint
    assert A_TOKEN not in str(caught.value)
