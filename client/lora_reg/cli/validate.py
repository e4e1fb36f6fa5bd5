"""validate: what an adapter does on its base, and whether a policy would let it through. On this machine."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_reg.cli.derive import kernels, need_folders
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.cli.text import table

if TYPE_CHECKING:
    from lora_reg.progress import Progress
    from lora_reg.spec.policy import Decision, Policy
    from lora_reg.spec.validation import Layer, Validation

_MARKS = {"passed": "ok", "failed": "FAILED", "warned": "warning", "missing": "missing", "skipped": "skipped"}


@click.command(cls=Command)
@click.argument("adapter", metavar="ADAPTER_DIR")
@click.option("--local", is_flag=True, required=True, help="On this machine, which is where it runs for now.")
@click.option("--base-dir", required=True, metavar="DIR", help="The folder of the base.")
@click.option("--data", multiple=True, metavar="FILE", help="An evaluation set of what it should be good at.")
@click.option("--general", multiple=True, metavar="FILE", help="A set of other text, on which it is seen to forget.")
@click.option("--against", metavar="ADAPTER_DIR", help="The adapter that is in service now.")
@click.option("--policy", "policy_file", metavar="FILE", help="TOML or JSON; without it, the default policy.")
@pass_state
def validate(
    state: State,
    adapter: str,
    local: bool,  # noqa: ARG001
    base_dir: str,
    data: tuple[str, ...],
    general: tuple[str, ...],
    against: str | None,
    policy_file: str | None,
) -> int:
    """Validate an adapter on its base and judge it by a policy; exit 6 where it is refused.

    An evaluation set is JSON lines of `text`, or of `prompt` and `completion`. With --against it must not be worse than
    the adapter that is in service.
    """
    from lora_reg.spec.errors import ERRORS
    from lora_reg.spec.policy import DEFAULT, GateFacts, decide

    policy = DEFAULT if policy_file is None else _policy(Path(policy_file))
    base, folder = Path(base_dir), Path(adapter)
    need_folders(base, folder, *([Path(against)] if against else []))
    sets = {"quality": [Path(name) for name in data], "forgetting": [Path(name) for name in general]}
    validating = kernels("validating", "Validating")
    progress = state.progress()
    try:
        skip: dict[Layer, str] = dict.fromkeys(policy.skip, "the policy skips it.")
        report = _report(validating, base, folder, sets, skip, progress)
        holder = None
        if against is not None:
            only_losses: dict[Layer, str] = dict.fromkeys(
                ("numbers", "effect", "agreement"), "only losses are compared."
            )
            holder = _report(validating, base, Path(against), sets, only_losses, progress)
    finally:
        progress.end()
    names = {role: {_digest(path): path.stem for path in paths} for role, paths in sets.items()}
    decision = decide(
        policy,
        GateFacts(
            report=report, holder=holder, held=holder is not None,
            quality=names["quality"], forgetting=names["forgetting"],
        ),
    )  # fmt: skip
    _tell(state, policy, report, decision)
    return 0 if decision.allowed else ERRORS["gate-refused"].exit


def _report(
    validating: Any,
    base: Path,
    adapter: Path,
    sets: dict[str, list[Path]],
    skip: dict[Layer, str],
    progress: Progress,
) -> Validation:
    chosen = tuple(
        validating.EvaluationSet(role, _digest(path), path.stem, path) for role, paths in sets.items() for path in paths
    )
    subject = validating.Subject(base, adapter, str(adapter), str(base), chosen, skip)
    shown: str | None = None
    before = 0

    def told(what: str, done: int, total: int) -> None:
        nonlocal shown, before
        if what != shown:
            progress.begin(what, total if total > 1 else None, unit="records")
            shown, before = what, 0
        progress.advance(done - before)
        before = done

    found: Validation = validating.validate(subject, progress=told)
    return found


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _policy(path: Path) -> Policy:
    """Raises RegistryError `invalid-request` for what is neither JSON nor TOML, or no policy."""
    from lora_reg.spec import canonical
    from lora_reg.spec.errors import RegistryError
    from lora_reg.spec.policy import parse_policy

    text = path.read_bytes()
    if path.suffix == ".json":
        return parse_policy(canonical.loads_strict(text, what=path.name, max_bytes=1 << 20))
    try:
        return parse_policy(tomllib.loads(text.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RegistryError("invalid-request", f"{path.name} is no TOML: {error}.") from error


def _tell(state: State, policy: Policy, report: Validation, decision: Decision) -> None:
    verdict = "allowed" if decision.allowed else "refused"
    rows = [(_MARKS[check.state], check.rule, check.message) for check in decision.checks]
    state.output().result(
        "lora-reg/validate-local/1",
        {"allowed": decision.allowed, "policy": policy.name, "decision": decision, "report": report},
        human=[
            *table(("", "RULE", "WHAT WAS FOUND"), rows),
            f"{verdict} by the policy {policy.name}: {decision.reason}",
        ],
        quiet=[verdict],
    )
