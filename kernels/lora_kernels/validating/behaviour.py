"""Answers to prompts, compared with expectations. Greedy and one at a time: equal inputs give equal answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import jsonschema_rs
import torch

from lora_contract.dataset import Expectation, Record
from lora_contract.regex import Regex
from lora_contract.regex_syntax import PatternError
from lora_contract.validation import Answers, Facts
from lora_kernels.validating.losses import MAX_TOKENS, Encoded, read_records
from lora_kernels.validating.subject import EvaluationSet

LONGEST: Final = 64
"""Maximum number of tokens of an answer."""

SHOWN: Final = 5
_MAX_CHARACTERS: Final = 400


def answered(model: Any, tokenizer: Any, chosen: EvaluationSet, progress: Callable[[str, int, int], None]) -> Answers:
    """Generate an answer to each prompt of a set and count those that are as expected."""
    records = read_records(chosen.path)
    met = 0
    missed: list[Facts] = []
    for number, record in enumerate(records, 1):
        answer = _answer(model, tokenizer, record)
        assert record.expect is not None  # the set has been checked
        if meets(answer, record.expect):
            met += 1
        elif len(missed) < SHOWN:
            missed.append({"record": number, "expected": _expected(record.expect), "answer": answer[:_MAX_CHARACTERS]})
        progress(f"{chosen.name}, answers", number, len(records))
    return Answers(chosen.name, met, len(records), missed)


def meets(answer: str, expect: Expectation) -> bool:
    """Whether an answer is as expected; an invalid pattern or schema matches nothing."""
    text = answer.strip()
    if expect.exact is not None:
        return text == expect.exact.strip()
    if expect.regex is not None:
        try:
            return Regex(expect.regex).matches(text)
        except PatternError:
            return False
    try:
        found = jsonschema_rs.validator_for(
            expect.json_schema or {}, retriever=_fetch_nothing, pattern_options=jsonschema_rs.RegexOptions()
        )
        return bool(found.is_valid(_json(text)))
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return False


def _answer(model: Any, tokenizer: Any, record: Record) -> str:
    ids = Encoded(tokenizer, Record(record.prompt or "")).ids[: MAX_TOKENS - LONGEST]
    prompt = torch.tensor([ids], device=model.device)
    end = tokenizer.eos_token_id
    with torch.inference_mode():
        generated = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=LONGEST,
            do_sample=False,
            num_beams=1,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
        )
    answer: str = tokenizer.decode(generated[0, len(ids) :], skip_special_tokens=True)
    return answer


def _json(text: str) -> Any:
    """The JSON value at the start of an answer. Raises ValueError."""
    import json

    return json.JSONDecoder().raw_decode(text)[0]


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")


def _expected(expect: Expectation) -> str:
    if expect.json_schema is not None:
        return "JSON of the schema"
    expected = f"exact: {expect.exact}" if expect.exact is not None else f"regex: {expect.regex}"
    return expected[:_MAX_CHARACTERS]
