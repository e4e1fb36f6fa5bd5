"""A base of many gigabytes (sparse, so that it costs no disk here) pushed with three cuts, and pulled.

    python -m tests.soak.large --store folder --gigabytes 20
    python -m tests.soak.large --store s3 --gigabytes 20

The client is killed at a quarter of its bytes, the service at a half, and the connections are cut at three quarters; a
restart of either side follows. The pull is killed at a half and started again. Prints the peak of memory of every
process, and how many bytes travelled more than once. Exit 1 if the bytes that come out are others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support import service
from tests.support.adapters import linear_shapes
from tests.support.command import Home
from tests.support.faults import FaultProxy
from tests.support.s3 import BUCKET, swift

NAME = "ns/large"
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 4096, 11008, 32, 8
FILE = "model.safetensors"


def sparse_base(folder: Path, size: int) -> None:
    """Write a Llama whose embedding makes up the rest of `size` bytes; the weights are a hole."""
    shapes = {"model.norm.weight": (HIDDEN,)}
    for name in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"model.layers.0.{name}.weight"] = (HIDDEN,)
    linear = linear_shapes(hidden=HIDDEN, intermediate=INTERMEDIATE, heads=HEADS, kv_heads=KV_HEADS)
    shapes |= {f"model.layers.0.{name}.weight": shape for name, shape in linear.items()}
    used = sum(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    vocab = (size - used) // (2 * HIDDEN)
    shapes["model.embed_tokens.weight"] = (vocab, HIDDEN)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / FILE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": KV_HEADS,
        "tie_word_embeddings": True,
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))


def peak(pid: int) -> int:
    """Peak resident memory of a process, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def dig(folder: Path) -> None:
    """Make holes of the zeros that a server wrote out: pull and cache need the room."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 1 << 20:
            subprocess.run(["fallocate", "--dig-holes", path], check=True)


def used(folder: Path) -> float:
    """Gigabytes on the disk."""
    return sum(path.stat().st_blocks for path in folder.rglob("*") if path.is_file()) * 512 / 1e9


class Run:
    """One push and pull; `peaks` of memory by side."""

    def __init__(self, folder: Path, home: Home, proxy: FaultProxy, size: int) -> None:
        self.folder = folder
        self.home = home
        self.proxy = proxy
        self.size = size
        self.peaks = {"client": 0, "service": 0}

    def client(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lora_reg.cli.main", *arguments, "--json"]
        environment = self.home.environment
        with (self.folder / "client.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)

    def follow(self, client: subprocess.Popen[bytes], registry: service.Service, *, upwards: bool, until: float) -> int:
        """Wait until this share of the bytes has passed, or the client has ended; return its status, or -1."""
        while client.poll() is None:
            self.peaks["client"] = max(self.peaks["client"], peak(client.pid))
            self.peaks["service"] = max(self.peaks["service"], peak(registry.process.pid))
            if self.proxy.passed[upwards] >= until * self.size:
                return -1
            time.sleep(0.02)
        return client.returncode


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=["folder", "s3"], required=True)
    parser.add_argument("--gigabytes", type=float, default=20)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp"))))
        (folder / "base").mkdir()
        sparse_base(folder / "base", int(options.gigabytes * 1e9))
        size = (folder / "base" / FILE).stat().st_size
        extra = {"LORA_REG_MAX_FILE_BYTES": str(1 << 40)}
        if options.store == "s3":
            (folder / "s3").mkdir()
            server = stack.enter_context(swift(folder / "s3"))
            proxy = stack.enter_context(FaultProxy(int(server.http.rpartition(":")[2])))
            extra |= {
                "LORA_REG_STORAGE_URL": f"s3://{BUCKET}/large",
                "LORA_REG_S3_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
                "LORA_REG_S3_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
            }
        else:
            proxy = stack.enter_context(FaultProxy(1))
        data = folder / "data"

        def start() -> service.Service:
            registry = service.start(data, extra=extra)
            if options.store == "folder":
                proxy.target_port = int(registry.url.rpartition(":")[2])
            return registry

        registry = start()
        url = f"http://127.0.0.1:{proxy.port}" if options.store == "folder" else registry.url
        run = Run(folder, Home(folder / "home", url), proxy, size)
        begun = time.monotonic()
        statuses = []
        for share, cut in ((0.25, "client"), (0.5, "service"), (0.75, "connections"), (9.0, "nothing")):
            client = run.client("base", "add", NAME, str(folder / "base"))
            status = run.follow(client, registry, upwards=True, until=share)
            if cut == "client":
                client.send_signal(signal.SIGKILL)
            elif cut == "service":
                registry.kill()
                statuses.append(client.wait())
                registry = start()
                run.home = Home(folder / "home", url if options.store == "folder" else registry.url)
            elif cut == "connections":
                proxy.cut_up_after = 0
                time.sleep(1.0)
                proxy.cut_up_after = None
                statuses.append(run.follow(client, registry, upwards=True, until=9.0))
            client.wait()
            if cut == "nothing":
                statuses.append(status)
        sent = proxy.passed[True]
        print(f"pushed {size / 1e9:.1f} GB in {time.monotonic() - begun:.0f} s; statuses of the client: {statuses}")
        print(
            f"sent to the store: {sent / 1e9:.2f} GB, {(sent - size) / 1e6:.0f} MB more than the file has", flush=True
        )
        print(f"on the disk: {used(folder):.1f} GB", flush=True)
        dig(folder / "s3" if options.store == "s3" else data)
        print(f"on the disk without zeros: {used(folder):.1f} GB", flush=True)
        proxy.reset()
        begun = time.monotonic()
        for share in (0.5, 9.0):
            client = run.client("pull", NAME, "-o", str(folder / "out"))
            status = run.follow(client, registry, upwards=False, until=share)
            if share < 1:
                client.send_signal(signal.SIGKILL)
            client.wait()
        received = proxy.passed[False]
        print(
            f"pulled in {time.monotonic() - begun:.0f} s, status {status}; {(received - size) / 1e6:.0f} MB more than it has"
        )
        print("peaks of memory: " + ", ".join(f"{side} {most / 1e6:.0f} MB" for side, most in run.peaks.items()))
        same = subprocess.run(["cmp", folder / "base" / FILE, folder / "out" / FILE], check=False).returncode == 0
        print(f"the same bytes: {same}")
        registry.stop()
        return 0 if same and status == 0 and statuses[-1] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
