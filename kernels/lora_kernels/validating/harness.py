"""Tasks of lm-evaluation-harness in a user's folders, run on the base and with the adapter.

Task files contain Python (`!function`) and templates that are rendered without a sandbox. They are the user's own, on
the user's own machine: registry jobs do not run tasks, and tasks never come from an adapter.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lora_contract import canonical
from lora_contract.errors import RegistryError
from lora_contract.validation import TaskMetric, TaskResult
from lora_kernels.validating import enclosure

SEED: Final = 1234
"""Seed of few-shot examples, of sampling, and of random numbers in a task's Python."""

RESAMPLES: Final = 100
"""Bootstrap resamples for the standard error of a metric that is not a mean, such as F1."""

# Folders that the index of lm-evaluation-harness ignores as well. Python writes the first.
_IGNORED: Final = ("__pycache__", ".ipynb_checkpoints")

Score = tuple[float | None, float | None]
"""A metric and its standard error. None: not finite, or missing."""

Scores = dict[str, dict[str, Score]]
"""By task and metric."""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    digest: str
    manager: Any
    items: list[Any]


class Tasks:
    """The tasks defined in some folders."""

    def __init__(self, folders: Sequence[_Folder] = ()) -> None:
        self._folders = folders
        self._records: dict[str, int] = {}

    def scores(self, model: Any, tokenizer: Any, progress: Callable[[int, int], None]) -> Scores:
        """Run every task, record by record. model, tokenizer: of transformers, not modified. progress: called with
        folders done and folders in total. Raises RegistryError `usage` if a task fails."""
        found: Scores = {}
        for done, folder in enumerate(self._folders):
            progress(done, len(self._folders))
            found |= self._run(folder, model, tokenizer)
        return found

    def results(self, base: Scores, adapter: Scores) -> dict[str, TaskResult]:
        """Combine the scores of base and adapter, from `scores`."""
        # A task's Python may return a metric for some answers only.
        none: Score = (None, None)
        digests = {name: folder.digest for folder in self._folders for name in _names(folder)}
        return {
            name: TaskResult(
                digest=digests[name],
                records=self._records[name],
                metrics={
                    metric: TaskMetric(*score, *base.get(name, {}).get(metric, none)) for metric, score in row.items()
                },
            )
            for name, row in sorted(adapter.items())
        }

    def _run(self, folder: _Folder, model: Any, tokenizer: Any) -> Scores:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        with _usage_errors(folder.path, "fails"), enclosure.enclosed(folder.path), _without_tying(model):
            enclosure.seed(SEED)
            loaded = folder.manager.load(folder.items)
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed=SEED)
            # lm-eval sets the tokenizer's padding token. In a larger batch a record's sums depend on its neighbours.
            harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
            # Not simple_evaluate, which queries the machine, git and a hub for seconds each time.
            found = evaluate(lm=harness, task_dict=loaded, bootstrap_iters=RESAMPLES, log_samples=False)
        self._records |= {name: row["sample_len"] for name, row in found["results"].items() if "sample_len" in row}
        scores = {name: _scores(row) for name, row in found["results"].items()}
        return {name: row for name, row in scores.items() if row}


@contextmanager
def opened(folders: Sequence[Path]) -> Iterator[Tasks]:
    """Read and prepare every task that is defined in the folders.

    Raises RegistryError `usage` if lm_eval is not installed, a file is not YAML, a file defines nothing and no other
    includes it, a name is defined twice, or a task cannot be prepared (its data are missing, for example).
    """
    if not folders:
        yield Tasks()
        return
    with enclosure.prepared():
        found: list[_Folder] = []
        for path in map(Path.absolute, folders):
            with enclosure.enclosed(path):
                found.append(_open(path))
            names = [name for folder in found for name in _names(folder)]
            _check_unique(names, path)
        yield Tasks(found)


def _open(path: Path) -> _Folder:
    from lm_eval.tasks import TaskManager

    _check(path)
    with _usage_errors(path, "cannot be prepared"):
        manager = TaskManager(include_path=path, include_defaults=False)
        groups = [manager.load([name])["groups"][name] for name in manager.all_groups]
        inner = {group.name for outer in groups for group in outer.get_all_groups()}
        items: list[Any] = [group for group in groups if group.name not in inner]
        grouped = {task.task_name for group in items for task in group.get_all_tasks()}
        ungrouped = [name for name in manager.all_subtasks if name not in grouped]
        items += [task for name in ungrouped for task in manager.load([name])["tasks"].values()]
    return _Folder(path, digest_of(path), manager, items)


def _check(path: Path) -> None:
    """Check the files of tasks. The harness's index silently ignores a file that it cannot read and a repeated name."""
    from lm_eval.tasks._yaml_loader import load_yaml

    files = [file for file in sorted(path.rglob("*.yaml")) if not _ignored(file)]
    nameless, included, names = [], set(), []
    for file in files:
        try:
            own = load_yaml(file, resolve_func=False, recursive=False)
            load_yaml(file, resolve_func=False)
        except Exception as error:  # of the parser, of the file system, or an include cycle
            raise RegistryError(
                "usage",
                f"{file} cannot be read as a task: {' '.join(str(error).split())[:300]}",
                hint="Fix the file, or move it out of the folder.",
            ) from error
        more = own.get("include", [])
        included |= {(file.parent / one).resolve() for one in (more if isinstance(more, list) else [more])}
        kind = next((key for key in ("group", "task") if isinstance(own.get(key), str)), None)
        if kind is None:
            nameless.append(file)
        else:
            names.append(own[kind])
    for file in nameless:
        if file.resolve() not in included:
            raise RegistryError(
                "usage",
                f"{file} names neither a `task` nor a `group`, and no other file includes it.",
                hint="Name the task, or move the file out of the folder.",
            )
    if not names:
        raise RegistryError(
            "usage", f"No task is defined in {path}.", hint="A task is a file *.yaml with the key `task`."
        )
    _check_unique(names, path)


def _check_unique(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RegistryError("usage", f"{path}: {twice[0]!r} is defined twice.", hint="Give each task a unique name.")


def _names(folder: _Folder) -> list[str]:
    """Names of all that gets a score: groups, and the tasks in and outside them."""
    loaded = folder.manager.load(folder.items)
    return [*loaded["tasks"], *loaded["groups"]]


def digest_of(path: Path) -> str:
    """The digest of a folder, from the paths and sha256 of its files."""
    files = (file for file in path.rglob("*") if file.is_file() and not _ignored(file))
    return str(canonical.digest({file.relative_to(path).as_posix(): _sha256(file) for file in files}))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ignored(file: Path) -> bool:
    return any(part in _IGNORED for part in file.parts)


def _scores(row: dict[str, Any]) -> dict[str, Score]:
    """The scores in a row of the harness: `acc,none` is the metric acc without a filter, `acc_stderr,none` its
    error."""
    found: dict[str, Score] = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = metric if filtered == "none" else key
        found[name] = (_number(value), _number(row.get(f"{metric}_stderr,{filtered}")))
    return found


def _number(value: Any) -> float | None:
    """None for anything but a finite number; lm-eval writes N/A for a missing error."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


@contextmanager
def _usage_errors(path: Path, what: str) -> Iterator[None]:
    """Raise any exception of a task's code and data as a `usage` error of its folder."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        logged = enclosure.last_error()
        raise RegistryError(
            "usage",
            f"A task of {path} {what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}{logged}",
            hint="Fix the task; its data and metrics must be on this machine, and paths are relative to the folder.",
        ) from error


@contextmanager
def _without_tying(model: Any) -> Iterator[None]:
    """Disable `tie_weights`. The harness calls it again, which fails if the base ties its lm_head and the adapter has
    its own."""
    model.tie_weights = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        del model.tie_weights
