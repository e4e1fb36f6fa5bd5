"""Names with capitals on the command line: any case of letters finds them, the first spelling is shown."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import Home, fresh, variant


def test_a_name_with_capitals(home: Home, tmp_path: Path) -> None:
    space = fresh()
    name = f"{space}/Qwen2.5-7B-LoRA"
    adapter = variant(tmp_path / "a", seed=3)
    assert home.ok("push", adapter, name, "--tag", "prod").out.startswith(f"{name}:v1")
    for other in (name, name.lower(), name.upper()):
        assert home.json("show", f"{other}:prod")["name"] == "Qwen2.5-7B-LoRA"
        assert name in home.ok("list", other).out
        pulled = home.json("pull", f"{other}:prod", "-o", tmp_path / "out")
        assert (pulled["namespace"], pulled["name"]) == (space, "Qwen2.5-7B-LoRA")
        assert home.ok("pull", f"{other}:prod", "--offline").out
        home.ok("tag", f"{other}:v1", "best")
    # One place in the cache.
    (cached,) = home.json("cache", "list")["versions"]
    assert cached["namespace"] == space
    home.ok("cache", "rm", name.upper())
    assert home.json("cache", "list")["versions"] == []
    said = home.run("show", f"{name}s")
    assert said.status == 3
    assert f"Did you mean {name}?" in said.err


def test_signatures_are_of_the_version_whatever_the_spelling(home: Home, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    name = f"{fresh()}/Signed"
    home.ok("push", variant(tmp_path / "a", seed=4), name)
    key = Ed25519PrivateKey.generate()
    secret, public = tmp_path / "key.pem", tmp_path / "key.pub"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    home.ok("sign", name.upper(), "--key", secret)
    home.ok("verify", name, "--key", public)
    home.ok("verify", name.lower(), "--key", public)
