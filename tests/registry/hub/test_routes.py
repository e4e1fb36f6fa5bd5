"""What stock clients do not show: headers, ranges, names in collision, and what is answered when something is wrong."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from tests.registry.hub.conftest import World, read
from tests.support.push import push

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def file_url(world: World) -> str:
    return f"{world.hub}/hub/python/resolve/prod/{WEIGHTS}"


@pytest.fixture
def weights(world: World) -> bytes:
    return (world.testbed / "adapters" / "lora-r8-qv-python" / WEIGHTS).read_bytes()


@pytest.fixture
def commit(world: World) -> str:
    answer = world.client.get("/api/v1/repositories/hub/python/versions/prod")
    return str(answer.json()["commit"])


def test_head_has_all_headers_and_never_redirects(file_url: str, weights: bytes, commit: str) -> None:
    answer = httpx.head(file_url, headers={"accept-encoding": "identity"})
    etag = f'"{hashlib.sha256(weights).hexdigest()}"'
    expected = {
        "x-repo-commit": commit,
        "etag": etag,
        "x-linked-etag": etag,
        "x-linked-size": str(len(weights)),
        "content-length": str(len(weights)),
        "accept-ranges": "bytes",
    }
    assert answer.status_code == 200
    assert {name: answer.headers.get(name) for name in expected} == expected
    assert not [name for name in answer.headers if "xet" in name or name == "content-encoding"]
    assert not {"location", "x-hf-warning"} & set(answer.headers)


def test_weights_are_never_compressed(file_url: str, weights: bytes) -> None:
    answer = httpx.get(file_url, headers={"accept-encoding": "gzip, br, zstd"})
    assert (answer.content, answer.headers.get("content-encoding")) == (weights, None)


def test_a_range_of_one_byte_tells_the_size(file_url: str, weights: bytes, commit: str) -> None:
    """How the Rust client asks for metadata."""
    answer = httpx.get(file_url, headers={"range": "bytes=0-0"})
    assert (answer.status_code, answer.content) == (206, weights[:1])
    assert answer.headers["content-range"] == f"bytes 0-0/{len(weights)}"
    assert answer.headers["x-repo-commit"] == commit


def test_an_end_of_a_file_can_be_had_alone(file_url: str, weights: bytes) -> None:
    answer = httpx.get(file_url, headers={"range": f"bytes={len(weights) - 7}-"})
    assert (answer.status_code, answer.content) == (206, weights[-7:])
    beyond = httpx.get(file_url, headers={"range": f"bytes={len(weights)}-"})
    assert beyond.status_code == 416


def test_who_has_the_file_is_told_so(file_url: str, commit: str) -> None:
    etag = httpx.head(file_url).headers["etag"]
    answer = httpx.head(file_url, headers={"if-none-match": etag})
    assert (answer.status_code, answer.headers["x-repo-commit"], answer.headers["etag"]) == (304, commit, etag)


def test_a_missing_file_names_the_commit_that_lacks_it(world: World, commit: str) -> None:
    for method in ("HEAD", "GET"):
        answer = httpx.request(method, f"{world.hub}/hub/python/resolve/prod/config.json")
        assert answer.status_code == 404
        assert (answer.headers["x-error-code"], answer.headers["x-repo-commit"]) == ("EntryNotFound", commit)


def test_a_quoted_slash_in_a_revision_is_not_another_file(world: World) -> None:
    """Decoded before it is matched, this would be the file `x/<weights>` of the tag `prod`."""
    answer = httpx.head(f"{world.hub}/hub/python/resolve/prod%2Fx/{WEIGHTS}")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    tag = httpx.head(f"{world.hub}/hub/python/resolve/refs%2Ftags%2Fprod/{WEIGHTS}")
    assert tag.status_code == 200


def test_a_path_leads_out_of_nowhere(world: World) -> None:
    for path in ("..%2F..%2Fregistry.sqlite3", "%2Fetc%2Fpasswd", "..%5Cx"):
        answer = httpx.get(f"{world.hub}/hub/python/resolve/prod/{path}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "EntryNotFound")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "api/agent-harnesses", 404, None),
        ("GET", "api/spaces/a/b", 404, "RepoNotFound"),
        ("GET", "api/models/UPPER/case", 404, "RepoNotFound"),
        ("GET", "api/models/hub/" + "x" * 300, 404, "RepoNotFound"),
        ("GET", "api/models/hub/python/tree/main/nope", 404, "EntryNotFound"),
        ("GET", "hub/python/resolve/deadbeef/config.json", 404, "RevisionNotFound"),
        ("GET", "hub/python/resolve/" + "0" * 40 + "/config.json", 404, "RevisionNotFound"),
        ("GET", "hub/python/resolve/v99999999999999999/config.json", 404, "RevisionNotFound"),
        ("GET", "api/models/hub/python/commits/main?cursor=nonsense", 400, None),
        ("GET", "api/models/hub/python/auth-check/write", 200, None),
        ("POST", "api/repos/create", 400, "invalid-request"),
        ("PUT", "hub/python/resolve/main/x", 405, None),
        ("DELETE", "api/models/hub/python/tag/nope", 404, "RevisionNotFound"),
        ("POST", "api/models/hub/python", 405, None),
    ],
)
def test_what_is_answered_when_something_is_wrong(
    world: World, method: str, path: str, status: int, code: str | None
) -> None:
    answer = httpx.request(method, f"{world.hub}/{path}")
    assert (answer.status_code, answer.headers.get("x-error-code")) == (status, code)
    if status >= 400:
        assert answer.headers["x-error-message"].startswith(answer.json()["error"])


def test_a_list_of_paths_may_come_as_form_or_json_and_has_a_limit(world: World) -> None:
    url = f"{world.hub}/api/models/hub/python/paths-info/main"
    form = httpx.post(url, data={"paths": [WEIGHTS, "nope", "notes.txt"], "expand": "false"})
    sent = httpx.post(url, json={"paths": [WEIGHTS, "nope", "notes.txt"], "expand": False})
    assert form.json() == sent.json()
    assert [item["path"] for item in form.json()] == [WEIGHTS, "notes.txt"]
    assert httpx.post(url, json={"paths": [7]}).status_code == 400
    assert httpx.post(url, content=b"\xff", headers={"content-type": "application/json"}).status_code == 400
    assert httpx.post(url, data={"paths": "x" * 2_000_000}).status_code == 413


def test_a_repository_of_that_very_name_comes_before_an_alias(world: World) -> None:
    versions = world.push_series("named")
    alias = httpx.get(f"{world.hub}/api/models/hub/named.prod").json()
    assert (alias["sha"], alias["id"]) == (versions[0]["commit"], "hub/named.prod")
    other = read(world.testbed / "adapters" / "series-sql" / "v3")
    own = push(world.client, "hub", "named.prod", "adapter", other, base="default/tiny").json()["version"]
    assert httpx.get(f"{world.hub}/api/models/hub/named.prod").json()["sha"] == own["commit"]
    # A later part is a tag again, of the longer name: which has none such.
    assert httpx.get(f"{world.hub}/api/models/hub/named.prod.prod").headers["x-error-code"] == "RevisionNotFound"


def test_main_is_the_newest_version_even_where_a_tag_has_that_name(world: World) -> None:
    first, _, third = world.push_series("branchy")
    assert world.client.put("/api/v1/repositories/hub/branchy/tags/main", json={"target": "v1"}).status_code == 200
    shas = [
        httpx.get(f"{world.hub}/api/models/hub/branchy/revision/{revision}").json()["sha"]
        for revision in ("main", "refs%2Fheads%2Fmain", "refs%2Ftags%2Fmain", "refs%2Ftags%2Fv1")
    ]
    assert shas == [third["commit"], third["commit"], first["commit"], first["commit"]]


def test_a_base_answers_to_what_trainers_call_it(world: World) -> None:
    answer = httpx.get(f"{world.hub}/api/models/Some.Org/Tiny-Llama/revision/main").json()
    assert (answer["id"], answer["sha"]) == (
        "Some.Org/Tiny-Llama",
        httpx.get(f"{world.hub}/api/models/default/tiny").json()["sha"],
    )


def test_a_yanked_version_is_served_by_number_with_a_warning_and_by_no_tag(world: World) -> None:
    first, _, third = world.push_series("recalled")
    yank = world.client.put("/api/v1/repositories/hub/recalled/versions/v1/yank", json={"reason": "leaks\r\nX-Evil: 1"})
    assert yank.status_code == 200
    for exact in ("v1", first["commit"]):
        answer = httpx.head(f"{world.hub}/hub/recalled/resolve/{exact}/{WEIGHTS}")
        assert (answer.status_code, answer.headers["x-hf-warning"]) == (200, "yanked; leaks X-Evil: 1")
        assert "x-evil" not in answer.headers
    for moving in ("prod", "refs%2Ftags%2Fprod"):
        answer = httpx.head(f"{world.hub}/hub/recalled/resolve/{moving}/{WEIGHTS}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
        assert "was yanked: leaks X-Evil: 1" in answer.headers["x-error-message"]
    assert httpx.get(f"{world.hub}/api/models/hub/recalled").json()["sha"] == third["commit"]
    for number in ("v2", "v3"):
        world.client.put(f"/api/v1/repositories/hub/recalled/versions/{number}/yank", json={"reason": "all bad"})
    answer = httpx.get(f"{world.hub}/api/models/hub/recalled")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    refs = httpx.get(f"{world.hub}/api/models/hub/recalled/refs").json()
    assert refs["branches"] == [] and [tag["name"] for tag in refs["tags"]] == ["v3", "v2", "v1"]


def test_deleted_things_are_not_found(world: World) -> None:
    world.push_series("gone")
    version = "/api/v1/repositories/hub/gone/versions/v3"
    assert world.client.delete(version).status_code == 204
    answer = httpx.get(f"{world.hub}/api/models/hub/gone/revision/v3")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    for tag in ("prod", "candidate"):
        assert world.client.delete(f"/api/v1/repositories/hub/gone/tags/{tag}").status_code == 204
    assert world.client.delete("/api/v1/repositories/hub/gone").status_code == 204
    answer = httpx.get(f"{world.hub}/api/models/hub/gone")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")


def test_models_are_listed_page_by_page(world: World) -> None:
    for letter in "abc":
        world.push_series(f"paged-{letter}")
    found, url = [], f"{world.hub}/channels/prod/api/models?author=hub&search=PAGED-&limit=2&filter=peft"
    pages = 0
    while url:
        answer = httpx.get(url)
        assert answer.status_code == 200
        found += [item["id"] for item in answer.json()]
        pages += 1
        url = answer.links.get("next", {}).get("url", "")
        assert not url or url.startswith(f"{world.hub}/channels/prod/api/models?author=hub")
    assert (found, pages) == (["hub/paged-a", "hub/paged-b", "hub/paged-c"], 2)
    assert httpx.get(f"{world.hub}/api/models?search=hub/paged-b").json()[0]["id"] == "hub/paged-b"
    assert httpx.get(f"{world.hub}/api/models?search=paged-&filter=transformers").json() == []
    assert httpx.get(f"{world.hub}/api/models?search=%25").json() == []


def test_the_dialect_is_not_in_the_native_document(world: World) -> None:
    paths = httpx.get(f"{world.service.url}/schema/openapi.json").json()["paths"]
    assert paths and not [path for path in paths if path.startswith("/hf")]
