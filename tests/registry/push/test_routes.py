"""Pushing: sessions, blobs, commits, and the same content twice."""

from __future__ import annotations

import hashlib

from tests.registry.site import SHARED, Site, adapter_files, base_files, fingerprint, problem, unique
from tests.support.adapters import BASE_ID
from tests.support.push import describe, push, upload

UPLOADS = "/api/v1/uploads"


def test_a_push_gives_a_version_with_all_it_was_told(site: Site) -> None:
    name = unique("told")
    first = site.pushed("ns", name, 1)
    answer = site.push(
        "ns", name, 2, message="better", meta={"run": "42"}, tags=["candidate"], parents=[f"ns/{name}:v1"]
    )
    assert answer.status_code == 201
    result = answer.json()
    version = result["version"]
    assert result["created"] is True
    assert result["job"].startswith("inspect-")
    assert (version["number"], version["kind"], version["message"]) == (2, "adapter", "better")
    assert version["meta"] == {"run": "42"}
    assert version["tags"] == ["candidate"]
    assert version["commit"] == version["digest"][7:47]
    assert version["base"]["namespace"] == SHARED
    assert version["base"]["digest"] == site.base()["digest"]
    assert [parent["digest"] for parent in version["parents"]] == [first["digest"]]
    assert version["files"] == sorted(describe(adapter_files(2)), key=lambda file: file["path"])
    assert version["size"] == sum(file["size"] for file in version["files"])
    assert version["author"] == "local"
    assert version["facts"]["max_rank"] == 2
    assert version["facts"]["peft_type"] == "LORA"


def test_files_come_back_as_they_were_sent(site: Site) -> None:
    path = site.repository()
    for name, data in adapter_files(1).items():
        answer = site.client.get(f"{path}/versions/v1/files/{name}")
        assert answer.status_code == 200
        assert answer.content == data
        assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'


def test_ranges(site: Site) -> None:
    path = f"{site.repository()}/versions/v1/files/adapter_model.safetensors"
    data = adapter_files(1)["adapter_model.safetensors"]
    size = len(data)
    for header, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=10-", 10, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=3-{size * 9}", 3, size),
        ("bytes=0-", 0, size),
    ):
        answer = site.client.get(path, headers={"Range": header})
        assert answer.status_code == 206, header
        assert answer.content == data[start:end], header
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    problem(site.client.get(path, headers={"Range": f"bytes={size}-"}), "range-not-satisfiable")
    for ignored in ("bytes=9-5,1-2", "lines=1-2", "bytes=x-"):
        assert site.client.get(path, headers={"Range": ignored}).status_code == 200, ignored
    stale = site.client.get(path, headers={"Range": "bytes=1-2", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, data)
    head = site.client.head(path)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")


def test_the_manifest_is_what_the_digest_is_of(site: Site) -> None:
    path = site.repository()
    version = site.client.get(f"{path}/versions/v1").json()
    answer = site.client.get(f"{path}/versions/v1/manifest")
    assert answer.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"
    assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == version["digest"]
    assert answer.headers["etag"] == f'"{version["digest"]}"'
    assert {layer["digest"] for layer in answer.json()["layers"]} == {file["digest"] for file in version["files"]}


def test_the_same_content_is_the_same_version(site: Site) -> None:
    name = unique("same")
    first = site.push("ns", name, 1, message="first")
    again = site.push("ns", name, 1, message="again")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["created"] is False
    assert again.json()["job"] is None
    assert again.json()["version"] == first.json()["version"]
    assert site.pushed("ns", name, 2)["number"] == 2
    kinds = [event["kind"] for event in site.events(f"ns/{name}")]
    assert [kind for kind in kinds if kind != "report-made"] == [
        "repository-created",
        "version-committed",
        "version-committed",
    ]


def test_the_answer_to_a_commit_was_lost_and_the_commit_is_sent_again(site: Site) -> None:
    name, files = unique("lost"), adapter_files(3)
    session = upload(site.client, "ns", name, "adapter", files).json()["id"]
    body = {"session": session, "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    path = f"/api/v1/repositories/ns/{name}/versions"
    first = site.client.post(path, json=body)
    assert first.status_code == 201
    problem(site.client.get(f"{UPLOADS}/{session}"), "not-found")
    again = site.client.post(path, json=body)
    assert again.status_code == 200, again.text
    assert again.json()["version"] == first.json()["version"]


def test_an_unknown_session_does_for_blobs_that_the_caller_can_read_and_for_no_others(site: Site) -> None:
    files, other = adapter_files(4), unique("copy")
    site.pushed("ns", unique("original"), 4)
    body = {"session": "0" * 32, "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    copied = site.client.post(f"/api/v1/repositories/ns/{other}/versions", json=body)
    assert copied.status_code == 201, copied.text
    body["files"] = describe(adapter_files(987_654))
    problem(site.client.post(f"/api/v1/repositories/ns/{other}/versions", json=body), "not-found")


def test_an_idempotency_key_gives_the_same_answer_and_refuses_another_request(site: Site) -> None:
    name, files, key = unique("key"), adapter_files(5), {"Idempotency-Key": unique("key")}
    session = upload(site.client, "ns", name, "adapter", files).json()["id"]
    body = {"session": session, "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    path = f"/api/v1/repositories/ns/{name}/versions"
    first = site.client.post(path, json=body, headers=key)
    again = site.client.post(path, json=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    problem(site.client.post(path, json={**body, "message": "other"}, headers=key), "idempotency-mismatch")
    problem(site.client.post(path, json=body, headers={"Idempotency-Key": "x" * 129}), "invalid-request")


def test_a_session_says_what_it_needs_until_it_is_abandoned(site: Site) -> None:
    files = adapter_files(9006, lora_dropout=0.25)
    request = {"namespace": "ns", "name": unique("s"), "kind": "adapter", "files": describe(files)}
    opened = site.client.post(UPLOADS, json=request)
    assert opened.status_code == 201
    session = opened.json()
    assert {blob["state"] for blob in session["blobs"]} == {"needed"}
    one = describe(files)[1]
    path = f"{UPLOADS}/{session['id']}"
    assert site.client.put(f"{path}/blobs/{one['digest']}", content=files[one["path"]]).status_code == 204
    shown = site.client.get(path).json()
    assert {blob["digest"]: blob["state"] for blob in shown["blobs"]} == {
        describe(files)[0]["digest"]: "needed",
        one["digest"]: "present",
    }
    body = {"session": session["id"], "kind": "adapter", "files": describe(files), "base": f"{SHARED}/base"}
    early = problem(site.client.post(f"/api/v1/repositories/ns/{request['name']}/versions", json=body), "rejected")
    assert "was not uploaded" in early["detail"]
    assert site.client.delete(path).status_code == 204
    problem(site.client.get(path), "not-found")
    problem(site.client.delete(path), "not-found")
    problem(site.client.put(f"{path}/blobs/{one['digest']}", content=b"x"), "not-found")


def test_wrong_bytes_are_not_kept(site: Site) -> None:
    files = adapter_files(9007, lora_dropout=0.75)
    request = {"namespace": "ns", "name": unique("s"), "kind": "adapter", "files": describe(files)}
    session = site.client.post(UPLOADS, json=request).json()
    config = describe(files)[0]
    data = files["adapter_config.json"]
    path = f"{UPLOADS}/{session['id']}/blobs/{config['digest']}"
    problem(site.client.put(path, content=data[:-1] + b" "), "digest-mismatch")
    problem(site.client.put(path, content=data[:-1]), "size-mismatch")
    problem(site.client.put(path, content=data + b" "), "size-mismatch")
    problem(site.client.put(f"{UPLOADS}/{session['id']}/blobs/sha256:{'0' * 64}", content=b""), "not-found")
    problem(site.client.put(f"{UPLOADS}/{session['id']}/blobs/md5:00", content=b""), "invalid-request")
    problem(site.client.post(f"{path}/complete"), "not-found")
    assert {b["state"] for b in site.client.get(f"{UPLOADS}/{session['id']}").json()["blobs"]} == {"needed"}


def test_what_is_here_already_need_not_be_sent(site: Site) -> None:
    site.pushed("ns", unique("one"), 8)
    request = {"namespace": "ns", "name": unique("two"), "kind": "adapter", "files": describe(adapter_files(8))}
    assert {blob["state"] for blob in site.client.post(UPLOADS, json=request).json()["blobs"]} == {"present"}


def test_uploads_that_make_no_sense(site: Site) -> None:
    files = describe(adapter_files(9))
    good = {"namespace": "ns", "name": unique("n"), "kind": "adapter", "files": files}
    for change, code in (
        ({"namespace": "No_"}, "invalid-reference"),
        ({"name": "a/b"}, "invalid-reference"),
        ({"kind": "pickle"}, "invalid-request"),
        ({"files": []}, "rejected"),
        ({"files": [{**files[0], "path": "../up"}]}, "rejected"),
        ({"files": [{**files[0], "size": -1}]}, "rejected"),
        ({"files": [{**files[0], "size": 2**70}]}, "rejected"),
        ({"files": [{**files[0], "size": 2**40}]}, "too-large"),
        ({"files": [{**files[0], "digest": "sha256:12"}]}, "invalid-request"),
        ({"files": [files[0], {**files[0], "path": "b", "size": 1}]}, "invalid-request"),
        ({"unknown": 1}, "invalid-request"),
    ):
        answer = site.client.post(UPLOADS, json={**good, **change})
        assert answer.headers["content-type"] == "application/problem+json", (change, answer.text)
        assert answer.json()["code"] == code, (change, answer.text)
    problem(site.client.post(UPLOADS, content=b"{", headers={"Content-Type": "application/json"}), "invalid-request")
    problem(site.client.post(UPLOADS, json={**good, "name": "base", "namespace": SHARED}), "conflict")


def test_commits_that_make_no_sense(site: Site) -> None:
    name, files = unique("bad"), adapter_files(10)
    for change, code in (
        ({"base": None}, "usage"),
        ({"base": "shared/none"}, "not-found"),
        ({"base": "No No"}, "invalid-reference"),
        ({"tags": ["latest"]}, "invalid-reference"),
        ({"tags": ["v3"]}, "invalid-reference"),
        ({"parents": [f"{name}:v9"]}, "not-found"),
        ({"message": "x" * 4097}, "too-large"),
        ({"meta": {"k" * 129: ""}}, "too-large"),
        ({"message": "a\0b"}, "invalid-request"),
        ({"weights_absent": True}, "invalid-request"),
        ({"aliases": ["x"]}, "invalid-request"),
    ):
        problem(push(site.client, "ns", name, "adapter", files, **{"base": f"{SHARED}/base", **change}), code)
    version = site.pushed("ns", unique("no-base"), 10)
    wrong = push(site.client, "ns", name, "adapter", files, base=f"ns/{version['name']}")
    assert "is of kind adapter" in problem(wrong, "conflict")["detail"]
    problem(site.client.get(f"/api/v1/repositories/ns/{name}"), "not-found")
    problem(push(site.client, "ns", unique("m"), "model", files, base=f"{SHARED}/base"), "unsupported")
    problem(push(site.client, "ns", unique("b"), "base", base_files(), base=f"{SHARED}/base"), "invalid-request")


def test_an_adapter_of_another_base_needs_a_word(site: Site) -> None:
    name, files = unique("other"), adapter_files(11, base_model_name_or_path="somebody/else")
    problem(push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base"), "base-mismatch")
    taken = push(site.client, "ns", name, "adapter", files, base=f"{SHARED}/base", accept_base=True)
    assert taken.status_code == 201, taken.text


def test_a_base_without_its_weights(site: Site) -> None:
    name, files = unique("thin"), base_files()
    taken = {key: data for key, data in files.items() if not key.endswith(".safetensors")}
    session = upload(site.client, "ns", name, "base", taken).json()["id"]
    document = site.client.get(f"/api/v1/repositories/{SHARED}/base/versions/latest/fingerprint").json()
    body = {
        "session": session,
        "kind": "base",
        "files": describe(files),
        "weights_absent": True,
        "fingerprint": document,
    }
    answer = site.client.post(f"/api/v1/repositories/ns/{name}/versions", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["version"]["weights_absent"] is True
    path = f"/api/v1/repositories/ns/{name}/versions/v1"
    shard = next(key for key in files if key.endswith(".safetensors"))
    problem(site.client.get(f"{path}/files/{shard}"), "not-found")
    assert site.client.get(f"{path}/files/config.json").content == files["config.json"]
    adapter = push(
        site.client, "ns", unique("thin-a"), "adapter", adapter_files(1), base=f"ns/{name}", accept_base=True
    )
    assert adapter.status_code == 201, adapter.text
    merge = {"adapters": [{"adapter": f"ns/{adapter.json()['version']['name']}"}], "to": f"ns/{unique('m')}"}
    problem(site.client.post("/api/v1/merges", json=merge), "unsupported")
    problem(
        site.client.post(
            f"/api/v1/repositories/ns/{name}/versions",
            json={**body, "files": describe({**files, "config.json": files["config.json"] + b" "})},
        ),
        "not-found",
    )


def test_the_fingerprint_of_a_base(site: Site) -> None:
    path = f"/api/v1/repositories/{SHARED}/base/versions/latest/fingerprint"
    answer = site.client.get(path)
    assert answer.status_code == 200
    assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == str(fingerprint().digest)
    problem(site.client.get(f"{site.repository()}/versions/v1/fingerprint"), "not-found")


def test_aliases_belong_to_one_base_of_a_namespace(site: Site) -> None:
    ns, path = unique("al"), "/api/v1/repositories"
    assert push(site.client, ns, "one", "base", base_files(), aliases=["org/one"]).status_code == 201
    assert push(site.client, ns, "two", "base", base_files()).status_code == 201
    view = site.client.put(f"{path}/{ns}/one/aliases", json={"aliases": ["uno", "org/one"]})
    assert view.json()["aliases"] == ["org/one", "uno"]
    problem(site.client.put(f"{path}/{ns}/two/aliases", json={"aliases": ["uno"]}), "exists")
    problem(site.client.put(f"{path}/{ns}/two/aliases", json={"aliases": [" x"]}), "invalid-request")
    problem(site.client.put(f"{site.repository()}/aliases", json={"aliases": ["x"]}), "conflict")
    assert site.client.delete(f"{path}/{ns}/one").status_code == 204
    # A deleted base gives its aliases free: they are no names of ours.
    assert site.client.put(f"{path}/{ns}/two/aliases", json={"aliases": ["uno"]}).json()["aliases"] == ["uno"]
    assert BASE_ID not in view.json()["aliases"]
