from __future__ import annotations

import hashlib

from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils.sha import git_hash

from lora_contract.wire.repositories import VersionFile
from lora_registry.hub import mapping
from lora_registry.hub.errors import header_text

CONTENT = {"config.json": b"{}", "sub/a.txt": b"a", "sub/deep/b.txt": b"bb"}
FILES = [
    VersionFile(path=path, size=len(data), digest="sha256:" + hashlib.sha256(data).hexdigest())
    for path, data in sorted(CONTENT.items())
]


def test_a_tree_lists_one_level_or_all() -> None:
    def names(path: str, recursive: bool) -> list[tuple[str, str]]:
        entries = mapping.tree(FILES, path=path, recursive=recursive)
        assert entries is not None
        return [(entry["type"], entry["path"]) for entry in entries]

    assert names("", False) == [("file", "config.json"), ("directory", "sub")]
    assert names("sub", False) == [("file", "sub/a.txt"), ("directory", "sub/deep")]
    assert names("", True) == [
        ("file", "config.json"),
        ("directory", "sub"),
        ("file", "sub/a.txt"),
        ("directory", "sub/deep"),
        ("file", "sub/deep/b.txt"),
    ]
    assert mapping.tree(FILES, path="su", recursive=True) is None
    assert mapping.tree(FILES, path="config.json", recursive=True) is None
    assert mapping.tree([], path="", recursive=True) == []


def test_the_object_id_is_that_of_the_pointer_that_git_would_hold() -> None:
    entry = mapping.paths_info(FILES, ["config.json"])[0]
    digest = hashlib.sha256(b"{}").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 2\n".encode()
    assert entry["lfs"] == {"oid": digest, "size": 2, "pointerSize": len(pointer)}
    assert entry["oid"] == git_hash(pointer)
    read = RepoFile(**entry)
    assert read.lfs is not None
    assert (read.path, read.size, read.lfs.sha256, read.lfs.pointer_size) == ("config.json", 2, digest, len(pointer))


def test_paths_info_leaves_out_what_is_not_there_and_names_each_once() -> None:
    found = mapping.paths_info(FILES, ["sub", "nope", "config.json", "sub/", "su"])
    assert [(entry["type"], entry["path"]) for entry in found] == [("directory", "sub"), ("file", "config.json")]
    assert len(RepoFolder(**found[0]).tree_id) == 40


def test_what_people_write_cannot_break_out_of_a_header() -> None:
    assert header_text("bad\r\nSet-Cookie: x\x00 – ä") == "bad Set-Cookie: x? ? ?"
    assert len(header_text("x" * 10_000)) == 500
