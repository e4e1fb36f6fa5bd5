from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_contract.regex import Budget, Regex
from lora_contract.regex_syntax import PatternError

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\.",
        "[ab]",
        "[^a]",
        r"\d",
        r"\w",
        r"\W",
        "1",
        r"\b",
        r"\B",
        "^",
        "$",
        "[a-b1]",
        "[]a]",
        r"[\d.]",
        "_",
    ]
)
REPEATS = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{0}", "{2,}"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(?:" + "|".join(parts) + ")"),
        st.tuples(inner, REPEATS).map(lambda pair: f"({pair[0]}){pair[1]}"),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
    ),
    max_leaves=10,
)
TEXTS = st.text("ab1._", min_size=1, max_size=8)


# Python announces that `[[` may mean something else one day.
NESTED_SETS = pytest.mark.filterwarnings("ignore:Possible .* at position:FutureWarning")


@NESTED_SETS
@settings(max_examples=1500)
@given(PATTERNS, st.lists(TEXTS, min_size=3, max_size=6))
def test_it_means_what_re_means(pattern, texts):
    reference = re.compile(pattern)
    whole, prefix = Regex(pattern), Regex(pattern, prefix=True)
    for text in texts:
        assert whole.matches(text) == bool(reference.fullmatch(text))
        assert prefix.matches(text) == bool(reference.match(text))


@NESTED_SETS
@settings(max_examples=500)
@given(st.text(r"ab.\(){}[]*+?|^$-,0123dwsbB:=!P<>#", max_size=16), TEXTS)
def test_any_text_is_a_pattern_or_is_refused(pattern, text):
    try:
        matched = Regex(pattern).matches(text)
    except PatternError:
        return
    assert matched == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("pattern", ["{0}", "{,}", "a|{1,2}", "({3})", "^{2}", "(?#remark){2}", "*", "a|+"])
def test_a_quantifier_with_nothing_to_repeat_is_refused(pattern):
    with pytest.raises(re.error):
        re.compile(pattern)
    with pytest.raises(PatternError, match="repeat"):
        Regex(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*a){25}", "(a|aa)+$", "(x+x+)+y", "(.*.*)*x", r"(\w+\.?)+X", "((a*)*)*b"]
)
def test_patterns_that_hang_re_finish_at_once(pattern):
    started = time.process_time()
    regex = Regex(pattern)
    for text in ("a" * 200 + "!", "x" * 200, "model.layers.0.self_attn.q_proj" * 5):
        regex.matches(text)
    assert time.process_time() - started < 1.0
    assert any(regex.backtracks(text, 5_000_000) for text in ("a" * 40 + "!", "x" * 40 + "!"))


# As two trainers write them: matched, and not taken for patterns that hang.
FROM_THE_WILD = [
    (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|ffn|dense).*?(?:k_proj|v_proj|q_proj|o_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attn|mlp)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj)))"
    ),
    r"^(language_model|model\.language_model)(?=\.).*\.(q_proj|k_proj|v_proj)$",
    r"^(?!.*vision).*(?:q_proj|v_proj)$",
    r".*\.layers\.(?:[0-9]|1[0-5])\.self_attn\.(q|v)_proj",
]


@pytest.mark.parametrize("pattern", FROM_THE_WILD)
def test_patterns_of_trainers(pattern):
    regex = Regex(pattern)
    names = [
        f"{root}.layers.{n}.{part}"
        for root in ("model", "model.language_model", "vision_tower", "language_model")
        for n in (0, 7, 15, 31)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp", "input_layernorm")
    ]
    assert [regex.matches(name) for name in names] == [bool(re.fullmatch(pattern, name)) for name in names]
    assert not any(regex.backtracks(name, 5_000_000) for name in (*names, "a" * 40 + "!", "model." * 8 + "!"))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(a)\1", "backreference"),
        (r"(?<=a)b", "lookbehind"),
        (r"(?<!a)b", "lookbehind"),
        (r"(?>a)b", "atomic"),
        (r"a*+", "possessive"),
        (r"(?i)a", "flags"),
        (r"(?P<n>a)(?P=n)", "backreference"),
        (r"(a)(?(1)b|c)", "conditional"),
        ("(a", "without ')'"),
        ("a)", "without '('"),
        ("*a", "nothing to repeat"),
        ("[a", "is incomplete"),
        ("[z-a]", "malformed range"),
        ("a{3,2}", "minimum exceeds its maximum"),
        ("a{99999}", "states"),
        ("((a{200}){200}){200}", "states"),
        ("(" * 80 + "a" + ")" * 80, "nests"),
        ("a" * 20_000, "characters"),
    ],
)
def test_what_is_not_supported_is_named(pattern, words):
    with pytest.raises(PatternError) as caught:
        Regex(pattern)
    assert words in caught.value.detail
    assert len(caught.value.detail) < 250


def test_the_budget_ends_all_work():
    budget = Budget(5_000)
    regex = Regex(".*a.*b.*", budget=budget)
    with pytest.raises(PatternError):
        for number in range(10_000):
            regex.matches(f"layer.{number}.name")
