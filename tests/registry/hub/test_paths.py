from __future__ import annotations

import pytest

from lora_registry.hub.paths import Call, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("raw", "call"),
    [
        ("api/whoami-v2", Call("whoami")),
        ("api/models", Call("list")),
        ("api/models/gpt2", Call("info", "gpt2")),
        ("api/models/team/a", Call("info", "team/a")),
        ("api/models/team/a/", Call("info", "team/a")),
        ("api/models/team/a/revision/prod", Call("info", "team/a", "prod")),
        ("api/models/gpt2/revision/prod", Call("info", "gpt2", "prod")),
        ("api/models/team/a/revision/refs%2Fpr%2F1", Call("info", "team/a", "refs/pr/1")),
        (f"api/models/team/a/tree/{COMMIT}", Call("tree", "team/a", COMMIT)),
        ("api/models/team/a/tree/main/sub/folder%20x", Call("tree", "team/a", "main", "sub/folder x")),
        ("api/models/team/a/paths-info/main", Call("paths-info", "team/a")),
        ("api/models/team/a/commits/main", Call("commits", "team/a")),
        ("api/models/team/a/refs", Call("refs", "team/a")),
        ("api/models/gpt2/refs", Call("refs", "gpt2")),
        ("api/models/team/a/auth-check/write", Call("auth-check", "team/a", path="write")),
        ("api/models/team/tree", Call("info", "team/tree")),
        ("api/models/team/tree/tree/main", Call("tree", "team/tree")),
        ("api/datasets/team/d/revision/main", Call("info", "team/d", kind="dataset")),
        ("team/a/resolve/main/config.json", Call("file", "team/a", "main", "config.json")),
        ("gpt2/resolve/main/sub/config.json", Call("file", "gpt2", "main", "sub/config.json")),
        ("team/a/resolve/feat%2Fx/f.json", Call("file", "team/a", "feat/x", "f.json")),
        ("team/resolve/resolve/main/f", Call("file", "team/resolve", "main", "f")),
        ("channels/prod/team/a/resolve/main/f", Call("file", "team/a", "main", "f", channel="prod")),
        ("channels/prod/api/models/team/a", Call("info", "team/a", channel="prod")),
        ("api/agent-harnesses", None),
        ("api/models/a/b/c", None),
        ("team/a/resolve/main", None),
        ("team//resolve/main/f", None),
        ("team/a/resolve/main/%FF", None),
        ("team/a/resolve/main/%00", None),
        ("channels/prod", None),
        ("channels/v1/api/models/team/a", None),
        ("channels/a%2Fb/api/models/team/a", None),
        ("channels/sha256:00/api/models/team/a", None),
        ("", None),
    ],
)
def test_a_raw_path_has_one_meaning(raw: str, call: Call | None) -> None:
    assert parse(raw) == call
