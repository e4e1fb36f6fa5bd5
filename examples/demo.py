"""The main workflow, end to end, on the embedded default: `make demo` runs this.

Start the service on a temporary data folder and run the commands that a user would type.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = Path("examples/tiny")
BIN = Path(sys.executable).parent
READY_SECONDS = 30
SAME_LOSS = 2e-3
"""In nats per token. The merged model is stored in bfloat16; base and adapter are evaluated in float32."""


class Failed(Exception):
    """A step of the demo failed."""


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def title(text: str) -> None:
    bold = ("\033[1m", "\033[0m") if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ("", "")
    say(f"\n{bold[0]}{text}{bold[1]}")


def run(*command: str, environment: dict[str, str], refused: bool = False) -> None:
    """Print a command and run it. refused: it must end with exit status 6."""
    say(f"$ lora-reg {shlex.join(command)}")
    done = subprocess.run([str(BIN / "lora-reg"), *command], env=environment, cwd=ROOT, check=False)
    if done.returncode != (6 if refused else 0):
        raise Failed(f"`lora-reg {shlex.join(command)}` ended with {done.returncode}.")
    if refused:
        say("(exit status 6: refused by a check)")


def evaluate(environment: dict[str, str], *arguments: str) -> float:
    """Return the held-out loss in nats per token."""
    command = [
        sys.executable,
        str(TINY / "evaluate.py"),
        "--data",
        str(TINY / "data/queries_eval.jsonl"),
        "--json",
        *arguments,
    ]
    answer = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return float(json.loads(answer.stdout)["loss"])


def wait_ready(url: str, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and service.poll() is None:
        try:
            with urllib.request.urlopen(url + "/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise Failed("The service did not become ready; its log is in the data folder.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tour(environment: dict[str, str], scratch: Path) -> None:
    title("A base model, pinned by the digest of all its files")
    run("base", "add", "tiny", str(TINY / "base"), "--alias", "lora-reg-examples/tiny-llama", environment=environment)

    title("Two adapters, and a second version of one")
    for folder, name in (("queries-v1", "acme/queries"), ("logs", "acme/logs"), ("queries-v2", "acme/queries")):
        run(
            "push",
            str(TINY / "adapters" / folder),
            "--base",
            "tiny",
            name,
            "--message",
            folder,
            environment=environment,
        )

    title("A broken one: it would overwrite a norm of the base for every adapter loaded after it")
    broken = str(TINY / "broken/overwrites-base-norm")
    run("push", broken, "--base", "tiny", "acme/queries", environment=environment, refused=True)

    title("A tag that inference servers follow")
    run("tag", "acme/queries:v2", "prod", "--reason", "better on held-out queries", environment=environment)

    title("A merge, as a job")
    run("merge", "acme/queries:prod", "--to", "acme/queries-merged", environment=environment)

    title("Pull by tag")
    run("pull", "acme/queries:prod", "-o", str(scratch / "queries"), environment=environment)
    run("pull", "acme/queries-merged", "-o", str(scratch / "merged"), environment=environment)

    title("The merged model is base + adapter: held-out loss on queries, nats per token")
    base = evaluate(environment, "--model", str(TINY / "base"))
    attached = evaluate(environment, "--model", str(TINY / "base"), "--adapter", str(scratch / "queries"))
    merged = evaluate(environment, "--model", str(scratch / "merged"))
    say(f"  base alone       {base:.4f}")
    say(f"  base + adapter   {attached:.4f}")
    say(f"  merged (bf16)    {merged:.4f}")
    if abs(attached - merged) > SAME_LOSS or attached > base - 1:
        raise Failed(f"The merged model's loss is {merged:.4f}, base + adapter have {attached:.4f}.")

    title("Where it came from")
    run("lineage", "acme/queries-merged", environment=environment)


def main() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="lora-reg-demo-"))
    data, port = scratch / "data", free_port()
    data.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("LORA_REG_", "HF_"))}
    url = f"http://127.0.0.1:{port}"
    environment = {
        **clean,
        "LORA_REG_SERVER": url,
        "LORA_REG_CACHE": str(scratch / "cache"),
        "XDG_CONFIG_HOME": str(scratch / "config"),
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
    }
    with (data / "serve.log").open("wb") as log:
        service = subprocess.Popen(
            [str(BIN / "lora-registry"), "serve", "--data", str(data), "--port", str(port)],
            env=clean,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_ready(url, service)
        tour(environment, scratch)
    except Failed as error:
        say(f"\nThe demo failed: {error}\nThe service's log: {data / 'serve.log'}")
        return 1
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        service.terminate()
        service.wait(timeout=30)
    bin_folder = BIN.relative_to(ROOT) if BIN.is_relative_to(ROOT) else BIN
    title("To go on by hand")
    say(f"  {bin_folder}/lora-registry serve --data {data}")
    say(f"  {bin_folder}/lora-reg list                     # in another terminal; see also --help")
    say(f"The data is in {scratch}; remove that folder when you are done.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
