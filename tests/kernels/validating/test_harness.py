"""Tasks of lm-evaluation-harness, by the real one: two of our own, on a real base and a real adapter."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_contract.errors import RegistryError
from lora_kernels.validating import Subject, models, validate
from lora_kernels.validating.harness import Tasks, digest_of, opened
from tests.support.command import TINY

BASE, ADAPTER = TINY / "base", TINY / "adapters" / "queries-v2"
SKIP = dict.fromkeys(("numbers", "effect", "agreement"), "not of interest here.")

PICK = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: data/pick.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: "{{choices}}"
doc_to_target: right
target_delimiter: ""
num_fewshot: 1
fewshot_split: test
"""
LINK = """
task: link
dataset_path: json
dataset_kwargs: {data_files: {test: data/link.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: !function helpers.prompt
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 24}
"""
HELPERS = """
def prompt(doc):
    print("of a task")
    # The tokenizer of the base begins with nothing by itself, and its model was trained on texts that begin so.
    return "<s>" + doc["question"]
"""
JOINS = {
    ("couriers", "depots"): "| link depots as d on c.depot_id",
    ("parcels", "depots"): "| link depots as d on p.depot_id",
}


def tasks_in(folder: Path) -> Path:
    """One of choices and one of answers, with data beside them and Python of their own."""
    (folder / "data").mkdir(parents=True)
    (folder / "pick.yaml").write_text(PICK)
    (folder / "link.yaml").write_text(LINK)
    (folder / "helpers.py").write_text(HELPERS)
    asked = [
        (f"# the {n} {far} by mean fee of {near}, per town\nfrom {near} as {near[0]}\n", line)
        for n, ((near, far), line) in enumerate(JOINS.items(), 2)
    ]
    pick = [
        {"start": start, "choices": [line, f"| keep {line[7:]}"][:: 1 - 2 * (n % 2)], "right": n % 2}
        for n, (start, line) in enumerate(asked)
    ]
    link = [{"question": start, "answer": line} for start, line in asked]
    for name, records in (("pick", pick), ("link", link)):
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def subject(*folders: Path) -> Subject:
    return Subject(BASE, ADAPTER, "v", "b", skip=SKIP, tasks=folders)  # type: ignore[arg-type]


def test_tasks_run_on_the_base_and_with_the_adapter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tasks_in(tmp_path / "tasks")
    before = digest_of(folder)
    report = validate(subject(folder))
    assert sorted(report.tasks) == ["link", "pick"]
    assert {found.records for found in report.tasks.values()} == {len(JOINS)}
    # What the adapter was trained on: the base knows none of it.
    answered = report.tasks["link"].metrics["exact_match"]
    assert (answered.base, answered.value) == (0.0, 1.0)
    assert answered.stderr == 0.0
    chosen = report.tasks["pick"].metrics["acc"]
    assert chosen.value == 1.0
    assert chosen.base is not None
    assert chosen.base_stderr is not None
    assert report.layers["behaviour"].facts["link.exact_match"] == {"value": 1.0, "base": 0.0}
    assert report.environment["lm_eval"]
    # Bound to the folder as it is, in which nothing was left.
    assert {found.digest for found in report.tasks.values()} == {before} == {digest_of(folder)}
    assert validate(subject(folder)).to_bytes() == report.to_bytes()
    told = capfd.readouterr()
    assert told.out == ""
    assert set(told.err.split("\n")) == {"of a task", ""}


def test_all_around_the_tasks_is_as_before(tmp_path: Path) -> None:
    import datasets.config
    import huggingface_hub.constants

    importlib.import_module("lm_eval.models.huggingface")  # it sets variables, and that is not what is asked here
    logger = logging.getLogger("lm_eval")
    inside: list[Any] = []

    def state() -> list[Any]:
        flags = [huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_DATASETS_OFFLINE, sys.dont_write_bytecode]
        return [dict(os.environ), Path.cwd(), datasets.config.HF_DATASETS_CACHE, logger.level, logger.handlers, *flags]

    class Looks:
        """A model that is asked for anything fails, and has seen what the harness works in."""

        device = None

        @property
        def config(self) -> Any:
            inside.extend(state())
            raise ValueError("looked")

    before = state()
    folder = tasks_in(tmp_path / "tasks")
    with pytest.raises(RegistryError, match="fails: ValueError: looked"), opened([folder]) as tasks:
        tasks.scores(Looks(), models.load_tokenizer(BASE), lambda _done, _total: None)
    assert state() == before
    assert (inside[1], inside[-3:]) == (folder, [True, True, True])
    assert inside[0]["HF_HUB_OFFLINE"] == inside[0]["HF_DATASETS_OFFLINE"] == "1"
    assert not Path(inside[2]).exists()


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    folder = tasks_in(tmp_path / "tasks")
    found = {digest_of(folder)}
    for name in ("data/pick.jsonl", "helpers.py", "link.yaml"):
        with (folder / name).open("a") as file:
            file.write("\n")
        found.add(digest_of(folder))
    (folder / "pick.yaml").rename(folder / "other.yaml")
    found.add(digest_of(folder))
    assert len(found) == 5


def test_an_lm_head_of_an_adapters_own_stays(tmp_path: Path) -> None:
    """The harness ties what it is given, which transformers cannot where the head stands in a wrapper of PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = models.load_base(BASE)
    base.config.tie_word_embeddings = True
    base.tie_weights()
    with models.quiet():
        model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[1, 5, 9, 13]])
    logits = model(input_ids=ids).logits
    with opened([tasks_in(tmp_path / "tasks")]) as tasks:
        tasks.scores(model, models.load_tokenizer(BASE), lambda _done, _total: None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert "tie_weights" not in vars(model)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"broken.yaml": "task: [x\n"}, r"broken\.yaml cannot be read as a task"),
        ({"typo.yaml": "tsk: x\n"}, r"typo\.yaml names neither a `task` nor a `group`"),
        ({"again.yaml": PICK}, "'pick' is defined twice"),
        ({"gone.yaml": PICK.replace("pick", "gone")}, "cannot be prepared: .*gone.jsonl"),
        ({"hub.yaml": PICK.replace("pick", "hub").replace(": json", ": acme/somewhere")}, "cannot be prepared"),
        ({"raises.yaml": LINK.replace("link", "raises"), "helpers.py": "def prompt(doc): 1 / 0"}, "ZeroDivisionError"),
        (
            {"strange.yaml": f"{PICK.replace('task: pick', 'task: strange')}metric_list: [{{metric: nobody_knows}}]\n"},
            "nobody_knows",
        ),
    ],
)
def test_a_task_that_cannot_be_run_is_told(tmp_path: Path, files: dict[str, str], said: str) -> None:
    folder = tasks_in(tmp_path / "tasks")
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(RegistryError, match=said) as told, opened([folder]):
        pass
    assert told.value.code == "usage"


def test_a_folder_without_tasks_is_told(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="No task is defined"), opened([tmp_path]):
        pass
    folder = tasks_in(tmp_path / "tasks")
    with pytest.raises(RegistryError, match="defined twice"), opened([folder, folder]):
        pass


def test_what_others_include_and_groups(tmp_path: Path) -> None:
    """A file that only others include is no task; a group has its own score beside its tasks', each run once."""
    folder = tasks_in(tmp_path / "tasks")
    (folder / "common.yaml").write_text(PICK.replace("task: pick\n", ""))
    (folder / "second.yaml").write_text("include: common.yaml\ntask: second\nnum_fewshot: 0\n")
    group: dict[str, Any] = {
        "group": "both", "task": ["pick", "second"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]
    }  # fmt: skip
    (folder / "both.yaml").write_text(json.dumps(group))
    with opened([folder]) as tasks:
        scores = tasks.scores(models.load_base(BASE), models.load_tokenizer(BASE), lambda _done, _total: None)
        results = tasks.results(scores, scores)
    assert sorted(results) == ["both", "link", "pick", "second"]
    means = [results[name].metrics["acc"].value for name in ("pick", "second")]
    assert results["both"].metrics["acc"].value == pytest.approx(sum(means) / 2)  # type: ignore[arg-type]
    assert results["both"].records == 2 * len(JOINS)


def test_without_the_harness_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RegistryError, match="lm-evaluation-harness") as told, opened([tmp_path]):
        pass
    assert "extra `harness`" in told.value.hint


def test_no_folder_needs_no_harness() -> None:
    with opened([]) as tasks:
        assert isinstance(tasks, Tasks)
        assert tasks.results({}, tasks.scores(None, None, lambda _done, _total: None)) == {}
