"""The frame of the command line: help, global options, forms of output, exit statuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from lora_contract.errors import RegistryError
from lora_reg import __version__
from lora_reg.cli.main import COMMANDS, SECTIONS, cli
from lora_reg.cli.output import Output, problem_document
from lora_reg.cli.state import Command
from lora_reg.client import Client
from lora_reg.config import load_settings
from lora_reg.formatting.text import clean, size, table
from tests.support.command import TINY, Home, fresh
from tests.support.front import Answer, Front
from tests.support.service import InProcess

TOKEN = "hf_" + "t" * 40


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands())


def test_these_are_the_commands() -> None:
    assert [" ".join(path) for path, _ in ALL] == [
        "push",
        "import",
        "pull",
        "list",
        "show",
        "validate",
        "report",
        "diff",
        "merge",
        "compose",
        "extract",
        "resize",
        "lineage",
        "reproduce",
        "provenance",
        "history",
        "tags",
        "tag",
        "untag",
        "rollback",
        "protect",
        "unprotect",
        "yank",
        "unyank",
        "delete",
        "undelete",
        "retention",
        "sign",
        "verify",
        "signature",
        "signature export",
        "signature import",
        "gate",
        "promote",
        "approve",
        "policy",
        "policy set",
        "policy remove",
        "policy show",
        "policy test",
        "job",
        "job list",
        "job show",
        "job logs",
        "job cancel",
        "job retry",
        "job wait",
        "base",
        "base add",
        "base alias",
        "base list",
        "base resize",
        "base show",
        "dataset",
        "dataset add",
        "dataset list",
        "dataset show",
        "namespace",
        "namespace list",
        "namespace show",
        "namespace set",
        "namespace quota",
        "token",
        "token list",
        "token grants",
        "token revoke",
        "login",
        "logout",
        "ci-token",
        "whoami",
        "cache",
        "cache list",
        "cache rm",
        "completion",
    ]


@pytest.mark.parametrize(
    ("path", "command"), ALL, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_explains_itself(home: Home, path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    assert command.name == path[-1]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)}: {parameter.name} has no help"
    names = {parameter.name for parameter in command.params}
    assert {"json", "quiet", "server", "token"} <= names
    shown = home.ok(*path, "--help").out
    assert shown.startswith(f"Usage: lora-reg {' '.join(path)} ")
    if isinstance(command, Command):
        assert command.examples, f"{' '.join(path)} has no example"
        assert "Examples:" in shown


@pytest.mark.parametrize(
    "example", [example for _, command in ALL if isinstance(command, Command) for example in command.examples]
)
def test_examples_fit_a_terminal_and_parse(example: str) -> None:
    assert len(example) <= 78
    words = shlex.split(re.sub(r"^eval \"\$\((.*)\)\"$", r"\1", example), comments=True)
    for stop in ("|", ">", "<"):
        words = words[: words.index(stop)] if stop in words else words
    assert words.pop(0) == "lora-reg"
    context, command = click.Context(cli), cli
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, parent=context, info_name=name)  # type: ignore[assignment]
    command.parse_args(context, words)


def test_every_command_stands_in_one_section() -> None:
    assert [name for names in SECTIONS.values() for name in names] == list(COMMANDS)


def test_the_list_of_commands_says_what_they_say() -> None:
    for path, command in ALL:
        if len(path) == 1:
            assert command.help is not None
            assert COMMANDS[path[0]][1] == command.help.splitlines()[0]


def test_version(home: Home) -> None:
    assert home.ok("--version").out == f"lora-reg {__version__}\n"


def test_global_options_stand_before_or_after(home: Home, registry: InProcess) -> None:
    nowhere = Home(home.folder, "http://127.0.0.1:9")
    for arguments in (
        ("--server", registry.url, "--json", "base", "list"),
        ("base", "--json", "--server", registry.url, "list"),
        ("base", "list", "--json", "--server", registry.url),
    ):
        assert nowhere.ok(*arguments).document["schema"] == "lora-reg/repository-list/1"


def test_the_document_of_a_version_is_stable(home: Home) -> None:
    """A golden key list: programs read these."""
    name = f"{fresh()}/queries"
    pushed = home.json("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    assert sorted(pushed) == [
        *("created", "dry_run", "findings", "job", "left_out", "schema", "sent", "version", "weights_added"),
    ]
    shown = home.json("show", name)
    assert shown["schema"] == "lora-reg/version/1"
    assert sorted(shown) == sorted(
        [
            "schema",
            "namespace",
            "name",
            "kind",
            "number",
            "digest",
            "commit",
            "created_at",
            "author",
            "message",
            "meta",
            "size",
            "files",
            "tags",
            "base",
            "parents",
            "recipe",
            "facts",
            "yanked",
            "weights_absent",
            "weights_at",
            "signatures",
        ]
    )
    assert sorted(shown["files"][0]) == ["digest", "path", "size"]
    pulled = home.json("pull", name)
    assert sorted(pulled) == sorted(
        [
            "schema",
            "reference",
            "namespace",
            "name",
            "number",
            "digest",
            "path",
            "format",
            "files",
            "size",
            "fetched",
            "written",
            "yanked",
            "resolved_at",
        ]
    )
    assert sorted(home.json("tag", name, "prod")) == sorted(
        ["schema", "namespace", "name", "tag", "generation", "protected", "version", "updated_at"]
    )
    assert sorted(home.json("history", name)) == ["moves", "repository", "schema", "tag", "versions"]
    assert sorted(home.json("lineage", name)) == ["edges", "nodes", "root", "schema", "truncated"]
    assert sorted(home.json("whoami")) == ["principal", "schema", "server"]


def test_an_error_is_one_document_on_stdout_and_a_sentence_on_stderr(home: Home) -> None:
    said = home.run("show", f"{fresh()}/nothing", "--json")
    assert said.status == 3
    assert sorted(said.document) == sorted(
        [
            "schema",
            "type",
            "title",
            "status",
            "exit",
            "code",
            "detail",
            "hint",
            "retryable",
            "request_id",
            "findings",
            "current",
        ]
    )
    assert (said.document["code"], said.document["status"], said.document["exit"]) == ("not-found", 404, 3)
    assert said.err == f"error: {said.document['detail']}\nhint: {said.document['hint']}\n"


def test_wrong_usage_ends_with_2_in_every_form(home: Home) -> None:
    said = home.run("push", "--json")
    assert said.status == 2
    assert said.document["code"] == "usage"
    assert "lora-reg push --help" in said.err
    assert home.run("nothing").status == 2
    assert home.run("show").status == 2
    assert home.run("show", "--nothing").status == 2
    assert home.run("show", "UPPER_").status == 2


def test_no_service_ends_with_10(home: Home) -> None:
    said = Home(home.folder, "http://127.0.0.1:9").run("list")
    assert said.status == 10
    assert "http://127.0.0.1:9" in said.err
    assert "lora-registry serve" in said.err


def test_another_kind_of_server_is_told(home: Home, registry: InProcess) -> None:
    def page(answer: Answer) -> None:
        answer.body, answer.headers = b"<html>hello</html>", {"content-type": "text/html"}

    with Front(registry.url, harm=page) as front:
        said = Home(home.folder, front.url).run("list")
    assert said.status == 10
    assert "is a lora-registry" in said.err


def test_what_a_server_says_cannot_steer_the_terminal(home: Home, registry: InProcess) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\n\u202eevil\x9b31m"

    def poison(answer: Answer) -> None:
        document = json.loads(answer.body)
        if answer.status >= 400:
            document["detail"] = document["hint"] = evil
        else:
            document["message"] = document["author"] = evil
        answer.body = json.dumps(document).encode()
        answer.headers["content-length"] = str(len(answer.body))

    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    with Front(registry.url, harm=poison) as front:
        there = Home(home.folder, front.url)
        for said in (there.run("show", name), there.run("show", name, "--json"), there.run("show", f"{name}:nope")):
            text = said.out + said.err
            assert "evil" in text
            assert all(character.isprintable() or character == "\n" for character in text)


def test_no_output_is_coloured_and_ascii_terminals_are_served(home: Home) -> None:
    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    done = subprocess.run(
        [sys.executable, "-m", "lora_reg.cli.main", "lineage", name],
        env={**home.environment, "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"`-- base: default/tiny:v1" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(home: Home) -> None:
    done = subprocess.run(
        f"{sys.executable} -m lora_reg.cli.main base list --json | head -c 1",
        shell=True,
        env=home.environment,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""


def test_login_tries_the_token_before_it_keeps_it(tmp_path: Path, registry: InProcess) -> None:
    seen: list[str | None] = []

    def watch(answer: Answer) -> None:
        seen.append(answer.asked.get("authorization"))
        if answer.asked.get("authorization") == f"Bearer {TOKEN}x":
            answer.status, answer.body, answer.headers = 401, b"{}", {}

    with Front(registry.url, harm=watch) as front:
        home = Home(tmp_path, "")
        wrong, right = tmp_path / "wrong", tmp_path / "right"
        wrong.write_text(f"{TOKEN}x\n")
        right.write_text(f"{TOKEN}\n")
        assert home.run("login", front.url, "--token-file", str(wrong)).status == 4
        assert not (tmp_path / "config" / "lora-reg" / "credentials.json").exists()
        said = home.ok("login", front.url, "--token-file", str(right))
        assert "Signed in to" in said.out
        kept = tmp_path / "config" / "lora-reg" / "credentials.json"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        seen.clear()
        # The server that was signed in to is the one that commands talk to, with its token.
        shown = home.ok("whoami")
        assert front.url in shown.out
        assert seen == [f"Bearer {TOKEN}"]
        assert TOKEN not in said.out + said.err + shown.out + shown.err
        home.ok("logout")
        assert TOKEN not in kept.read_text()
        assert home.run("login", front.url).status == 2


def test_a_token_is_no_argument(home: Home) -> None:
    """Every process of a machine sees the arguments of all others."""
    for arguments in (
        ("whoami", "--token", TOKEN),
        ("--token", TOKEN, "whoami"),
        ("login", home.server, f"--token={TOKEN}"),
    ):
        said = home.run(*arguments)
        assert said.status == 2
        assert "--token-file" in said.err
        assert TOKEN not in said.out + said.err


def test_a_token_file_is_read_again_for_each_request(tmp_path: Path, registry: InProcess) -> None:
    """Kubernetes replaces the projected tokens of a pod while it runs."""
    file, seen = tmp_path / "token", []
    with Front(registry.url, harm=lambda answer: seen.append(answer.asked.get("authorization"))) as front:
        file.write_text("hf_first\n")
        settings = load_settings(server=front.url, environ={"HOME": str(tmp_path), "LORA_REG_TOKEN_FILE": str(file)})
        with Client(settings=settings) as client:
            client.whoami()
            file.write_text("hf_second\n")
            client.whoami()
            file.write_text("\n")
            with pytest.raises(RegistryError, match="no token in its first line"):
                client.whoami()
    assert seen == ["Bearer hf_first", "Bearer hf_second"]


def test_what_is_nearer_decides_the_token(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "LORA_REG_TOKEN": "hf_env", "LORA_REG_TOKEN_FILE": str(tmp_path / "file")}
    (tmp_path / "file").write_text("hf_file")
    (tmp_path / "option").write_text("hf_option")

    def bearer(**options: str) -> str | None:
        return load_settings(environ=environ, folder=tmp_path, **options).bearer()

    assert bearer(token="hf_given") == "hf_given"
    assert bearer(token_file=str(tmp_path / "option")) == "hf_option"
    assert bearer() == "hf_env"
    del environ["LORA_REG_TOKEN"]
    assert bearer() == "hf_file"


def test_a_stored_token_that_others_can_read_stops_every_command(home: Home) -> None:
    folder = home.folder / "config" / "lora-reg"
    folder.mkdir(parents=True)
    (folder / "credentials.json").write_text(json.dumps({"current": None, "servers": {home.server: {"token": TOKEN}}}))
    (folder / "credentials.json").chmod(0o644)
    said = home.run("list")
    assert said.status == 4
    assert "chmod 600" in said.err
    assert TOKEN not in said.err


def test_a_local_failure_names_the_place(home: Home, tmp_path: Path) -> None:
    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    (tmp_path / "file").write_text("x")
    said = home.run("pull", name, "-o", tmp_path / "file" / "below")
    assert said.status == 1
    assert str(tmp_path / "file") in said.err


def test_text() -> None:
    assert clean("a\x1bb\ud800c\u200b\n") == "a\\x1bb\\ud800c\\u200b\\n"
    assert [size(count) for count in (0, 999, 1000, 999_949, 999_950, 1_500_000_000, 3 * 10**12)] == [
        "0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 GB", "3.0 TB",
    ]  # fmt: skip
    assert table(("A", "B"), [("xx", "y"), ("z", "")]) == ["A   B", "xx  y", "z"]
    assert table(("A",), []) == []


def test_problem_documents_hold_structs_as_objects() -> None:
    class Inner(msgspec.Struct):
        x: int

    document = problem_document(RegistryError("tag-moved", "d", current=Inner(3)))
    assert document["current"] == {"x": 3}


def test_no_bar_where_nobody_watches(home: Home) -> None:
    from lora_reg.cli.bar import on_terminal
    from lora_reg.progress import SILENT

    assert on_terminal(quiet=False) is SILENT
    assert Output("human").mode == "human"


@pytest.mark.worker
def test_a_bar_on_a_terminal_and_only_there(home: Home) -> None:
    """On a pseudo-terminal: the bar is on stderr, stdout stays data."""
    name = f"{fresh()}/queries"
    home.ok("push", TINY / "adapters" / "queries-v1", "--base", "tiny", name)
    leader, follower = os.openpty()
    arguments = [sys.executable, "-m", "lora_reg.cli.main", "merge", name, "--to", f"{name}-merged", "--json"]
    with subprocess.Popen(
        arguments, env={**home.environment, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        out, _ = process.communicate(timeout=60)
    shown = b""
    with contextlib.suppress(OSError), open(leader, "rb", buffering=0) as terminal:
        while piece := terminal.read(65536):
            shown += piece
    assert process.returncode == 0, shown
    assert json.loads(out)["schema"] == "lora-reg/merge/1"
    assert b"\x1b[" in shown
    assert b"Traceback" not in shown
