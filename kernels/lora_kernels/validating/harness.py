"""Tasks of lm-evaluation-harness: folders of a user, run on the base and with the adapter.

Task files hold Python (`!function`) and templates that are rendered without a sandbox. They are the user's own, on the
user's own machine; no job of a registry gets here, and nothing of an adapter is among them.
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
"""Of examples that are drawn for a prompt, of sampling, and of all that a task's own Python draws."""

RESAMPLES: Final = 100
"""For the standard error of a metric that is not a mean, such as F1."""

# What the index of lm-evaluation-harness leaves out as well; Python writes the first by itself.
_NO_CONTENT: Final = ("__pycache__", ".ipynb_checkpoints")

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
        """Run every task, record by record. model, tokenizer: of transformers; neither is changed. progress: called
        with the folders done, and of how many. Raises RegistryError `usage` for a task that fails."""
        found: Scores = {}
        for number, folder in enumerate(self._folders):
            progress(number, len(self._folders))
            found |= self._of(folder, model, tokenizer)
        return found

    def results(self, base: Scores, adapter: Scores) -> dict[str, TaskResult]:
        """Both beside each other. base, adapter: from `scores`."""
        # A task's own Python may give a metric for some answers only.
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

    def _of(self, folder: _Folder, model: Any, tokenizer: Any) -> Scores:
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        with _blamed(folder.path, "fails"), enclosure.enclosed(folder.path), _tied_as_it_is(model):
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

    Raises RegistryError `usage`: lm_eval is not installed; a file that is not YAML, or that defines nothing and is
    included by none; a name twice; a task that cannot be prepared, as its data are not in the folder.
    """
    if not folders:
        yield Tasks()
        return
    with enclosure.prepared():
        made: list[_Folder] = []
        for path in map(Path.absolute, folders):
            with enclosure.enclosed(path):
                made.append(_open(path))
            names = [name for folder in made for name in _names(folder)]
            _once(names, path)
        yield Tasks(made)


def _open(path: Path) -> _Folder:
    from lm_eval.tasks import TaskManager

    _check(path)
    with _blamed(path, "cannot be prepared"):
        manager = TaskManager(include_path=path, include_defaults=False)
        groups = [manager.load([name])["groups"][name] for name in manager.all_groups]
        inner = {group.name for outer in groups for group in outer.get_all_groups()}
        items: list[Any] = [group for group in groups if group.name not in inner]
        grouped = {task.task_name for group in items for task in group.get_all_tasks()}
        alone = [name for name in manager.all_subtasks if name not in grouped]
        items += [task for name in alone for task in manager.load([name])["tasks"].values()]
    return _Folder(path, digest_of(path), manager, items)


def _check(path: Path) -> None:
    """The harness's own index passes over a file that it cannot read and over a name that it has met."""
    from lm_eval.tasks._yaml_loader import load_yaml

    files = [file for file in sorted(path.rglob("*.yaml")) if not _passed_over(file)]
    nameless, included, names = [], set(), []
    for file in files:
        try:
            own = load_yaml(file, resolve_func=False, recursive=False)
            load_yaml(file, resolve_func=False)
        except Exception as error:  # of the parser, of the file system, of a cycle of files
            raise RegistryError(
                "usage",
                f"{file} cannot be read as a task: {' '.join(str(error).split())[:300]}",
                hint="Mend the file, or move it out of the folder.",
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
                hint="Give the task its name, or move the file out of the folder.",
            )
    if not names:
        raise RegistryError(
            "usage", f"No task is defined in {path}.", hint="A task is a file *.yaml with the key `task`."
        )
    _once(names, path)


def _once(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RegistryError(
            "usage", f"{path}: {twice[0]!r} is defined twice.", hint="Give each task a name of its own."
        )


def _names(folder: _Folder) -> list[str]:
    """Of all that gets a score: groups, and the tasks in and beside them."""
    loaded = folder.manager.load(folder.items)
    return [*loaded["tasks"], *loaded["groups"]]


def digest_of(path: Path) -> str:
    """Of a folder: of its files' paths and sha256."""
    files = (file for file in path.rglob("*") if file.is_file() and not _passed_over(file))
    return str(canonical.digest({file.relative_to(path).as_posix(): _sha256(file) for file in files}))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _passed_over(file: Path) -> bool:
    return any(part in _NO_CONTENT for part in file.parts)


def _scores(row: dict[str, Any]) -> dict[str, Score]:
    """Of a row of the harness: `acc,none` is the metric acc behind no filter, `acc_stderr,none` its error."""
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
def _blamed(path: Path, what: str) -> Iterator[None]:
    """Report whatever a task's own code and data raise as an error of that folder."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        heard = enclosure.last_error()
        raise RegistryError(
            "usage",
            f"A task of {path} {what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}{heard}",
            hint="Mend the task; its data and metrics have to be on this machine, and paths are from the folder.",
        ) from error


@contextmanager
def _tied_as_it_is(model: Any) -> Iterator[None]:
    """The harness ties the weights of a model that it is given once more, which fails where the base's lm_head is tied
    and the adapter has its own."""
    model.tie_weights = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        del model.tie_weights
