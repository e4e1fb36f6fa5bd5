"""validate: measure an adapter on its base and judge it by a policy, by a job or on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from lora_contract import decoding
from lora_reg.cli.derive import kernels, need_folders, refuse
from lora_reg.cli.state import Command, State, pass_state

if TYPE_CHECKING:
    from lora_contract.policy import Decision, Policy
    from lora_contract.validation import DatasetRole, Layer, Precision, Validation
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client
    from lora_reg.progress import Progress

    Names: TypeAlias = dict[DatasetRole, dict[str, str]]
    """Names of datasets by role and digest."""
    Found: TypeAlias = tuple[Validation, Validation | None, Names]
    """The report, that of the adapter to compare with, and the datasets."""


@click.command(
    cls=Command,
    examples=(
        "lora-reg validate acme/sql:v4 --data acme/sql-eval --against acme/sql:prod",
        "lora-reg validate --local ./adapter --base-dir ./base --data eval.jsonl",
    ),
)
@click.argument("subject", metavar="REF|ADAPTER_DIR")
@click.option("--data", multiple=True, metavar="REF", help="Task evaluation set; may be repeated.")
@click.option(
    "--general", multiple=True, metavar="REF", help="General-text set, to measure forgetting; may be repeated."
)
@click.option("--against", metavar="REF", help="Adapter to compare with; the new one must not be worse.")
@click.option(
    "--policy", "policy_file", metavar="FILE", help="Policy to judge by, as TOML or JSON (default: the default policy)."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "nf4"]),
    help="Precision to load the base in (default: float32, or bfloat16 above 4 GB of weights).",
)
@click.option("--plot", metavar="FILE", help="Plot the losses with their 95% intervals, as PNG or SVG.")
@click.option("--detach", is_flag=True, help="Do not wait for the job; print its id.")
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Stop waiting after this time, with exit status 8."
)
@click.option(
    "--local", is_flag=True, help="Work on this machine; ADAPTER_DIR, --data, --general and --against are paths."
)
@click.option("--base-dir", metavar="DIR", help="With --local: folder of the base.")
@click.option(
    "--tasks",
    multiple=True,
    metavar="DIR",
    help="With --local: folder of lm-evaluation-harness tasks, whose Python is run; may be repeated.",
)
@pass_state
def validate(
    state: State,
    subject: str,
    data: tuple[str, ...],
    general: tuple[str, ...],
    against: str | None,
    policy_file: str | None,
    precision: Precision | None,
    plot: str | None,
    detach: bool,
    timeout: float | None,
    local: bool,
    base_dir: str | None,
    tasks: tuple[str, ...],
) -> int:
    """Validate an adapter on its base and judge it by a policy.

    The exit status is 6 if the policy refuses it. Evaluation sets are JSON lines of `text`, or of `prompt` and
    `completion`. No tag moves: use `gate` and `promote` for that.
    """
    from lora_contract.errors import ERRORS
    from lora_contract.policy import DEFAULT, GateFacts, decide, parse_policy
    from lora_reg.cli.gates import pinned
    from lora_reg.cli.jobs import print_job
    from lora_reg.cli.policies import read

    if plot is not None:
        from lora_reg.formatting.plots import check

        check(plot)
    policy = DEFAULT if policy_file is None else parse_policy(read(Path(policy_file)))
    precision = precision or policy.precision
    if local:
        refuse({"--detach": detach, "--timeout": timeout}, "--local")
        if base_dir is None:
            raise click.UsageError("--local needs --base-dir DIR, the folder of the base.")
        found = _here(state, policy, Path(base_dir), Path(subject), data, general, against, precision, tasks)
    else:
        if tasks:
            raise click.UsageError(
                "--tasks needs --local: task files contain Python and templates that would run on the registry's "
                "workers."
            )
        refuse({"--base-dir": base_dir}, "a job")
        client = state.client()
        refs = [pinned(client, ref) for ref in (subject, against) if ref is not None]
        asked = [client.validate(ref, data=data, general=general, precision=precision) for ref in refs]
        if detach:
            print_job(state, asked[0])
            return 0
        found = _done(state, client, asked, refs, timeout)
    report, holder, names = found
    decision = decide(
        policy,
        GateFacts(
            report=report, target=holder, has_target=holder is not None,
            quality=names["quality"], forgetting=names["forgetting"], behaviour=names["behaviour"],
        ),
    )  # fmt: skip
    if plot is not None:
        _draw(report, holder, subject, against, Path(plot))
        state.output().note(f"plot written to {Path(plot).resolve()}")
    _print(state, policy, report, decision)
    return 0 if decision.allowed else ERRORS["gate-refused"].exit


def _done(state: State, client: Client, asked: list[JobView], refs: list[str], timeout: float | None) -> Found:
    """Wait for the jobs and read their reports."""

    from lora_contract.validation import Validation
    from lora_reg.cli.jobs import watch
    from lora_reg.waiting import require_done

    reports = []
    for job, ref in zip(asked, refs, strict=True):
        require_done(job if job.state == "done" else watch(state, client, job.id, timeout=timeout))
        view = next(item for item in client.reports(ref).items if item.id == job.id)
        reports.append(decoding.convert(view.body, Validation))
    report = reports[0]
    called = {found.dataset: found.name for found in report.evaluations}
    called |= {digest: found.name for digest, found in report.answers.items()}
    names: Names = {
        role: {digest: called.get(digest, digest) for digest in digests} for role, digests in report.datasets.items()
    }
    return report, reports[1] if len(reports) > 1 else None, names


def _here(
    state: State,
    policy: Policy,
    base: Path,
    folder: Path,
    data: tuple[str, ...],
    general: tuple[str, ...],
    against: str | None,
    precision: Precision | None,
    tasks: tuple[str, ...],
) -> Found:
    """Run the validation on this machine. precision None: chosen by the size of the base."""
    from lora_contract.validation import default_precision

    need_folders(base, folder, *map(Path, tasks), *([Path(against)] if against else []))
    sets: dict[DatasetRole, list[Path]] = {
        "quality": [],
        "forgetting": [Path(name) for name in general],
        "behaviour": [],
    }
    for name in data:
        sets["behaviour" if _asks(Path(name)) else "quality"].append(Path(name))
    validating = kernels("validating", "Validating")
    precision = precision or default_precision(sum(path.stat().st_size for path in base.rglob("*") if path.is_file()))
    progress = state.progress()
    try:
        skip: dict[Layer, str] = dict.fromkeys(policy.skip, "the policy skips it.")
        known = validating.BaseLosses()
        report = _report(validating, base, folder, sets, skip, precision, progress, known, tasks)
        holder = None
        if against is not None:
            only_losses: dict[Layer, str] = dict.fromkeys(
                ("numbers", "effect", "agreement", "behaviour"), "only losses are compared."
            )
            holder = _report(validating, base, Path(against), sets, only_losses, precision, progress, known)
    finally:
        progress.end()
    return report, holder, {role: {_digest(path): path.stem for path in paths} for role, paths in sets.items()}


def _report(
    validating: Any,
    base: Path,
    adapter: Path,
    sets: dict[DatasetRole, list[Path]],
    skip: dict[Layer, str],
    precision: Precision,
    progress: Progress,
    known: Any,
    tasks: tuple[str, ...] = (),
) -> Validation:
    """known: the kernels' `BaseLosses`, for all adapters of a command."""
    chosen = tuple(
        validating.EvaluationSet(role, _digest(path), path.stem, path) for role, paths in sets.items() for path in paths
    )
    subject = validating.Subject(
        base, adapter, str(adapter), str(base), chosen, skip, precision=precision, tasks=tuple(map(Path, tasks))
    )
    shown: str | None = None
    before = 0

    def report_progress(what: str, done: int, total: int) -> None:
        nonlocal shown, before
        if what != shown:
            progress.begin(what, total if total > 1 else None, unit="records")
            shown, before = what, 0
        progress.advance(done - before)
        before = done

    found: Validation = validating.validate(subject, progress=report_progress, base_losses=known)
    return found


def _asks(path: Path) -> bool:
    """Whether the dataset has expected answers. Raises RegistryError `rejected` if it is not a dataset."""
    from lora_contract.dataset import check_dataset

    with path.open("rb") as file:
        return check_dataset(iter(lambda: file.read(1 << 20), b"")).form == "answers"


def _digest(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _draw(report: Validation, holder: Validation | None, subject: str, against: str | None, file: Path) -> None:
    from lora_reg.formatting.plots import loss_bars

    theirs = {found.dataset: found for found in holder.evaluations} if holder else {}
    rows = []
    for found in report.evaluations:
        bars = [
            ("base", found.base_loss, _interval(found.base_nats, found.tokens)),
            (Path(subject).name, found.loss, _interval(found.nats, found.tokens)),
        ]
        if (other := theirs.get(found.dataset)) is not None:
            bars.insert(1, (Path(against or "").name, other.loss, _interval(other.nats, other.tokens)))
        rows.append((found.name, bars))
    loss_bars(rows, file, title=f"losses of {Path(subject).name}")


def _interval(nats: list[float | None], tokens: list[int]) -> tuple[float, float] | None:
    """The 95% interval of a loss; None if there are too few records or a loss is not finite."""
    from lora_contract.statistics import paired_difference

    finite = [value for value in nats if value is not None]
    if len(finite) < len(nats):
        return None
    found = paired_difference(finite, [0.0] * len(finite), tokens)
    return (found.low, found.high) if found else None


def _print(state: State, policy: Policy, report: Validation, decision: Decision) -> None:
    from lora_reg.formatting.gate import checks
    from lora_reg.formatting.reports import tasks
    from lora_reg.formatting.text import Line, Word

    verdict = Word("allowed", "good") if decision.allowed else Word("refused", "bad")
    state.output().result(
        "lora-reg/validation/1",
        {"allowed": decision.allowed, "policy": policy.name, "decision": decision, "report": report},
        human=[
            *checks(decision.checks),
            *tasks(report),
            Line(verdict, f" by the policy {policy.name}: {decision.reason}", hang=4),
        ],
        quiet=[verdict],
    )
