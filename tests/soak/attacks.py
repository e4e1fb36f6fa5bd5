"""The attacks that `tests.soak.attacking` plays, each a function from an attacker to what he was answered."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx

from tests.registry.keeping.shelves import Folder, flipped
from tests.registry.site import SHARED, Site, adapter_files, base_files, unique
from tests.support.adapters import BASE_ID
from tests.support.push import describe, push

WEIGHTS: Final = "adapter_model.safetensors"
JSON: Final = {"Content-Type": "application/json"}
MERGES: Final = "/api/v1/merges"

Attack = Callable[["Attacker"], str]
ATTACKS: Final[dict[str, Attack]] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def keep(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return keep


class Attacker:
    """admin: may do all. writer: of the namespace `ns` only, like every other client of a team. unknown: no token."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.admin = site.connect(site.token("admin"))
        self.writer = site.connect(site.token_with("writer:ns", f"reader:{SHARED}"))
        self.unknown = site.connect()
        for client in (self.admin, self.writer, self.unknown):
            client.timeout = httpx.Timeout(300)
        answer = push(self.admin, SHARED, "base", "base", base_files(), aliases=[BASE_ID])
        assert answer.status_code == 201, answer.text
        assert self.push(adapter_files(1), name="victim").status_code == 201

    def push(self, files: dict[str, bytes], *, name: str | None = None, **commit: Any) -> httpx.Response:
        return push(self.writer, "ns", name or unique("attack"), "adapter", files, base=f"{SHARED}/base", **commit)

    def job(self, job: str, seconds: float = 120) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            view = self.admin.get(f"/api/v1/jobs/{job}").json()
            if view["state"] in ("done", "failed", "cancelled"):
                error = view.get("error")
                return f"{view['state']} {str(error or '')[:90]}".strip()
            time.sleep(0.2)
        return f"{view['state']} after {seconds:.0f} s"


def said(answer: httpx.Response) -> str:
    """The status, and of a problem its code and the first finding."""
    if not answer.headers.get("content-type", "").startswith("application/problem"):
        return str(answer.status_code)
    body = answer.json()
    found = [finding["message"] for finding in body.get("findings", []) if finding["severity"] == "error"]
    return f"{answer.status_code} {body['code']}: {(found or [body['detail']])[0][:90]}"


def timed(ask: Callable[[], httpx.Response]) -> str:
    begun = time.monotonic()
    try:
        return f"{ask().status_code} in {time.monotonic() - begun:.2f} s"
    except httpx.HTTPError as error:
        return type(error).__name__


@attack("nothing, 5 s")
def nothing(_on: Attacker) -> str:
    time.sleep(5)
    return "-"


@attack("honest push, 32 MB of weights")
def honest(on: Attacker) -> str:
    return said(on.push({**adapter_files(2), "README.md": os.urandom(32 << 20)}))


@attack("F1: 100 uploads stall for 10 s")
def stalled(on: Attacker) -> str:
    url = httpx.URL(on.site.url)
    files = {f"{number}.txt": os.urandom(64) for number in range(100)}
    body = {"namespace": "ns", "name": unique("slow"), "kind": "adapter", "files": describe(files)}
    session = on.writer.post("/api/v1/uploads", json=body).json()
    with contextlib.ExitStack() as stack:
        for blob in session["blobs"]:
            connection = stack.enter_context(socket.create_connection((url.host, url.port or 80)))
            path = f"/api/v1/uploads/{session['id']}/blobs/{blob['digest']}"
            token = on.writer.headers["authorization"]
            head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 64\r\n\r\n"
            connection.sendall(head.encode() + b"xx")
        time.sleep(10)
        file = f"ns/victim/resolve/main/{WEIGHTS}"
        native = timed(lambda: on.writer.get(f"/api/v1/repositories/ns/victim/versions/v1/files/{WEIGHTS}"))
        return f"file {native}; hub file {timed(lambda: on.writer.get(f'/hf/{file}'))}; push {said(on.push(adapter_files(3)))}"


@attack("F1: 2,000 idle connections")
def idle(on: Attacker) -> str:
    url = httpx.URL(on.site.url)
    with contextlib.ExitStack() as stack:
        for _ in range(2000):
            stack.enter_context(socket.create_connection((url.host, url.port or 80)))
        return f"version {timed(lambda: on.writer.get('/api/v1/repositories/ns/victim/versions/v1'))}"


def _body(on: Attacker, byte: bytes, count: int) -> str:
    def one(_number: int) -> str:
        try:
            return str(
                httpx.post(on.site.url + MERGES, content=byte * 63_000_000, headers=JSON, timeout=300).status_code
            )
        except (httpx.WriteError, httpx.ReadError):
            return "cut off"

    with ThreadPoolExecutor(count) as pool:
        return ", ".join(sorted(set(pool.map(one, range(count)))))


@attack("F3: body of 63 MB, no token")
def large_body(on: Attacker) -> str:
    return _body(on, b"[", 1)


@attack("F3: 63 MB of backslashes, no token")
def backslashes(on: Attacker) -> str:
    return _body(on, b"\\", 1)


@attack("F3: 12 such at once")
def twelve_bodies(on: Attacker) -> str:
    return _body(on, b"\\", 12)


@attack("F3: 1 MB of brackets, with a token, 50 times")
def brackets_body(on: Attacker) -> str:
    body = b"[" * 500_000 + b"]" * 500_000
    return ", ".join({said(on.writer.post(MERGES, content=body, headers=JSON)) for _ in range(50)})


@attack("F3: 1 MB of objects, with a token, 50 times")
def objects_body(on: Attacker) -> str:
    body = b'{"x":[' + b"{}," * 340_000 + b"{}]}"
    return ", ".join({said(on.writer.post(MERGES, content=body, headers=JSON)) for _ in range(50)})


@attack("F4: flipped bit")
def damaged(on: Attacker) -> str:
    files = adapter_files(40)
    on.push(files, name="damaged")
    shelf = Folder(on.site.data)
    shelf.write(files[WEIGHTS], flipped(files[WEIGHTS], bit=7))
    hub = on.writer.get(f"/hf/ns/damaged/resolve/v1/{WEIGHTS}").status_code
    merge = on.writer.post(MERGES, json={"adapters": [{"adapter": "ns/damaged:v1"}], "to": "ns/from-damaged"})
    outcome = on.job(merge.json()["id"]) if merge.status_code < 400 else said(merge)
    again = said(on.push(files, name="damaged"))
    healed = on.writer.get(f"/hf/ns/damaged/resolve/v1/{WEIGHTS}").content == files[WEIGHTS]
    return f"hub file {hub}; merge: {outcome}; pushed again: {again}, healed: {healed}"


@attack("F4: lost blob")
def lost(on: Attacker) -> str:
    files = adapter_files(41)
    on.push(files, name="lost")
    Folder(on.site.data).write(files[WEIGHTS], None)
    url = f"/hf/ns/lost/resolve/v1/{WEIGHTS}"
    gone = on.writer.get(url).status_code
    again = said(on.push(files, name="lost"))
    return f"hub file {gone}; pushed again: {again}, healed: {on.writer.get(url).content == files[WEIGHTS]}"


def header(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


def many_tensors(count: int) -> bytes:
    """A header in which all is right but that no base has these tensors."""
    entries, position = [], 0
    for number in range(count):
        name = f"base_model.model.model.layers.{number // 1000}.mlp.experts.{number}.lora_A.weight"
        entries.append(f'"{name}":{{"dtype":"F32","shape":[1,1],"data_offsets":[{position},{position + 4}]}}')
        position += 4
    return header(("{" + ",".join(entries) + "}").encode()) + bytes(position)


BOMBS: Final[dict[str, Callable[[], dict[str, bytes]]]] = {
    "F5: 28 MB of metadata keys": lambda: {WEIGHTS: header(b'{"__metadata__":{' + b",".join(b'"%07d":""' % n for n in range(2_000_000)) + b"}}")},
    "F5: 94 MB of metadata keys": lambda: {WEIGHTS: header(b'{"__metadata__":{' + b",".join(b'"%07d":""' % n for n in range(7_800_000)) + b"}}")},
    "F5: 30 MB of keys of value 0": lambda: {WEIGHTS: header(b"{" + b",".join(b'"%07d":0' % n for n in range(2_700_000)) + b"}")},
    "F5: 30 MB of brackets": lambda: {WEIGHTS: header(b'{"a":[' + b"[]," * 10_000_000 + b"[]]}")},
    "F5: 98 MB of brackets": lambda: {WEIGHTS: header(b'{"a":[' + b"[]," * 32_000_000 + b"[]]}")},
    "F5: tokenizer.json, 30 MB of {}": lambda: {"tokenizer.json": b"[" + b"{}," * 10_000_000 + b"{}]"},
    "F5: adapter_config.json, 6 MB of {}": lambda: {"adapter_config.json": b'{"peft_type":"LORA","x":[' + b"{}," * 2_000_000 + b"{}]}"},
    "F5: header of 150,000 tensors": lambda: {WEIGHTS: many_tensors(150_000)},
    "F5: header of 8,000 tensors": lambda: {WEIGHTS: many_tensors(8_000)},
    "F5: tokenizer.json of 900 KB of {}": lambda: {"tokenizer.json": b"[" + b"{}," * 300_000 + b"{}]"},
}  # fmt: skip


def _bomb(make: Callable[[], dict[str, bytes]]) -> Attack:
    return lambda on: said(on.push({**adapter_files(5), **make()}))


for _name, _make in BOMBS.items():
    ATTACKS[_name] = _bomb(_make)


@attack("F5: 24 commits of bombs at once")
def bombs_at_once(on: Attacker) -> str:
    files = BOMBS["F5: 28 MB of metadata keys"]()
    with ThreadPoolExecutor(24) as pool:
        answers = pool.map(lambda seed: said(on.push({**adapter_files(seed), **files}))[:40], range(50, 74))
        return "; ".join(sorted(set(answers)))


@attack("F8: chat template of 7**(10**9)")
def template(on: Attacker) -> str:
    files = {**base_files(), "chat_template.jinja": b"{% set a = 7 ** (10 ** 9) %}x"}
    answer = push(on.admin, SHARED, unique("template"), "base", files)
    jobs = on.admin.get("/api/v1/jobs", params={"limit": 5}).json()["items"]
    begun = time.monotonic()
    ends = {on.job(job["id"]) for job in jobs}
    return f"{answer.status_code}; its inspection and those before: {', '.join(sorted(ends))} after {time.monotonic() - begun:.0f} s"


@attack("F9: code in the config of a base")
def base_code(on: Attacker) -> str:
    answers = []
    for key, value in (
        ("attn_implementation", "evil-org/evil-kernel"),
        ("trust_remote_code", True),
        ("text_config", {"auto_map": {"AutoModel": "x.Y"}}),
        ("custom_generate", "evil-org/evil"),
    ):
        files = base_files()
        files = {**files, "config.json": json.dumps({**json.loads(files["config.json"]), key: value}).encode()}
        answers.append(str(push(on.admin, SHARED, unique("evil"), "base", files).status_code))
    return ", ".join(answers)


@attack("F11: names of another namespace")
def names(on: Attacker) -> str:
    push(on.admin, "acme", "secret-project", "adapter", adapter_files(80), base=f"{SHARED}/base")
    push(on.admin, "ns", "public", "adapter", adapter_files(81), base=f"{SHARED}/base", parents=["acme/secret-project:v1"])  # fmt: skip
    urls = ("api/v1/repositories/ns/public/versions/v1", "api/v1/repositories/ns/public/versions", "hf/api/models/ns/public",
            "api/v1/repositories/ns/public/versions/v1/lineage", "hf/ns/public/resolve/main/README.md", "api/v1/jobs", "api/v1/events")  # fmt: skip
    found = [url for url in urls if "secret-project" in on.writer.get(f"/{url}").text]
    return f"named by {found or 'none'} of {len(urls)} pages"


@attack("F12: texts, depth, duplicate keys, file names")
def small(on: Attacker) -> str:
    tag = "/api/v1/repositories/ns/victim/tags/t"
    odd = [
        on.writer.put(tag, json={"target": "v1", "reason": "x" * 900_000}),
        on.writer.put(tag, content=b"[" * 200_000, headers=JSON),
        on.writer.put(tag, content=b'{"target":"v1","target":"v2"}', headers=JSON),
        on.push({**adapter_files(6), "CON.md": b"x"}),
    ]
    return "; ".join(said(answer)[:40] for answer in odd)


@attack("F12: 30 writers wait for a locked SQLite")
def locked(on: Attacker) -> str:
    if not on.site.sqlite:
        return "-"
    import sqlite3

    holder = sqlite3.connect(on.site.data / "registry.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with ThreadPoolExecutor(30) as pool:
            moves = [
                pool.submit(on.writer.put, f"/api/v1/repositories/ns/victim/tags/l{n}", json={"target": "v1"})
                for n in range(30)
            ]
            time.sleep(3)
            read = timed(lambda: on.writer.get("/api/v1/repositories/ns/victim/versions/v1"))
            holder.execute("ROLLBACK")
            return f"read {read}; writes {sorted({move.result().status_code for move in moves})}"
    finally:
        holder.close()
