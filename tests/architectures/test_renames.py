"""The table of renames is that of the installed transformers, and merges are right whatever version an adapter's names
are of."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    apply_converters,
    apply_renamings,
    revert_weight_conversion,
)

from lora_contract.renames import Converted, RenamedClass, Rule, rename_table, renaming
from tests.architectures.generate_renames import converted_by_peft, rename_row, submodel_types
from tests.architectures.renamed import (
    DOCUMENT,
    forms,
    line,
    older_names,
    renamed_classes,
    saved_in_both,
    sweep_names,
)
from tests.architectures.renames import meta_model, rules_of
from tests.architectures.sweep import effective
from tests.architectures.tiny import every_class
from tests.support.adapters import check_files, fingerprint_of, read_folder

pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = sorted(every_class())[5::60]
RENAMED = sorted(forms().items())[::8]
SHARE = sorted(forms().items())[::14]


@pytest.mark.parametrize(("name", "model_type"), SHARE)
def test_adapters_with_names_of_any_version_are_merged_or_refused(tmp_path: Path, name: str, model_type: str) -> None:
    outcomes = sweep_names(name, model_type, tmp_path)
    assert not [f"{case}: {outcome}" for case, outcome in outcomes.items() if outcome.startswith("wrong")]
    assert line(name, outcomes) in DOCUMENT.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", SAMPLE)
def test_the_table_of_renames_is_generated_from_the_classes(name: str) -> None:
    table = rename_table()
    row = rename_row(name, every_class()[name])
    wanted = None if row is None else msgspec.convert(row, RenamedClass)
    assert table.classes.get(name) == wanted


def test_the_rules_are_those_of_transformers() -> None:
    table = rename_table()
    assert table.transformers == transformers.__version__
    for key, rules in table.rules.items():
        assert rules == msgspec.convert(rules_of(key), tuple[Rule, ...])
    types = submodel_types()
    assert all(types[kind] == name for kind, name in table.types.items())
    assert table.peft == msgspec.convert(converted_by_peft(), Converted)


@pytest.mark.parametrize(("name", "model_type"), RENAMED)
def test_a_name_becomes_what_transformers_makes_of_it(name: str, model_type: str) -> None:
    try:
        model = meta_model(name, model_type)
    except Exception:  # whatever a class raises that cannot be made here
        pytest.skip("the class cannot be made here")
    ours = renaming(name, model.config.to_dict())
    assert ours is not None
    transforms = conversion_mapping.get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    state = model.state_dict()
    older = older_names(model)
    plain = {parameter: torch.empty(1, device="meta") for parameter in older}
    for stored in (*revert_weight_conversion(model, plain), *state):
        renamed = apply_renamings(stored, renamings)
        if stored in state and renamed not in state:
            renamed = stored
        assert ours.parameter(stored) == renamed
        made, source = apply_converters(renamed, converters)
        found = ours.conversion(renamed)
        assert (found is None) == (source is None)
        assert found is None or found.made[0] == made


def test_every_renamed_class_has_its_rules() -> None:
    table = rename_table()
    for name in renamed_classes():
        assert all(table.rules[part.rules] for part in table.classes[name].parts)


@pytest.mark.parametrize(
    ("name", "by_ends", "loads"),
    [
        ("LlavaForConditionalGeneration", True, False),  # but for its projector
        ("LlavaForConditionalGeneration", False, False),
        ("Gemma3ForConditionalGeneration", True, True),
        ("Qwen2_5_VLForConditionalGeneration", True, False),
        ("ViTForImageClassification", True, False),
        ("NemotronHForCausalLM", True, True),
    ],
)
def test_the_warning_of_older_names_is_true(tmp_path: Path, name: str, by_ends: bool, loads: bool) -> None:
    """by_ends: the config names modules by the ends of their paths, as most do."""
    kind = getattr(transformers, name)
    adapted = saved_in_both(kind, renamed_classes()[name], tmp_path)["older"]
    config = tmp_path / "older-adapter" / "adapter_config.json"
    document = json.loads(config.read_text())
    if by_ends:
        document["target_modules"] = sorted({_end(path) for path in document["target_modules"]})
        config.write_text(json.dumps(document))
    found = check_files(read_folder(config.parent), fingerprint_of(tmp_path / "older"), accept_base=True)
    codes = {finding.code for finding in found.findings} - {"missing-module"}  # ends name convolutions too
    assert not codes & {"module-not-in-base", "not-targeted"}
    assert ("older-names" in codes) == (not loads)
    base = kind.from_pretrained(tmp_path / "today", dtype=torch.float32)
    try:
        served = PeftModel.from_pretrained(base, str(config.parent)).base_model.model
    except ValueError as error:
        assert "not found in the base model" in str(error)
        assert not loads
        return
    wanted, computed = effective(adapted), effective(served)
    assert all(torch.allclose(value, computed[name], atol=1e-5) for name, value in wanted.items()) == loads


def _end(path: str) -> str:
    parts = path.split(".")
    return parts[-1] if not parts[-1].isdecimal() else ".".join(parts[-2:])
