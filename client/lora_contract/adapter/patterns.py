"""PEFT's rules for targets and patterns of a config, matched in linear time.

The rules are those of peft 0.21.2 (`check_target_module_exists`, `get_pattern_key`); regular expressions are matched by
`lora_contract.regex`, never by `re`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import groupby

from lora_contract.adapter.config import AdapterConfig
from lora_contract.adapter.saved import saved_modules
from lora_contract.regex import Budget, Regex

ALL_LINEAR = "all-linear"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_MAX_STEPS = 5_000_000
_PROBE = 40
_MAX_PATHS = 24


def pattern_key(keys: Iterable[str], budget: Budget | None = None) -> Callable[[str], str | None]:
    """A function that returns the first key that matches a module path, by `re.match(rf"(.*\\.)?({key})$", path)`, or
    None."""
    rules = [(key, _key_rule(key, budget)) for key in keys]

    def find(path: str) -> str | None:
        return next((key for key, rule in rules if rule(path)), None)

    return find


def targets(config: AdapterConfig, budget: Budget | None = None) -> Callable[[str], bool]:
    """A predicate: the config targets a module path. "all-linear" matches every path that is not excluded; the caller
    must filter by the kind of module."""
    excluded = names_module(config.exclude_modules, budget)
    saved = [_saved_rule(name, budget) for name in saved_modules(config)]
    target = config.target_modules
    if isinstance(target, str):
        everything = target.lower() == ALL_LINEAR
        pattern = None if everything else Regex(target, budget=budget)

        def chosen(path: str) -> bool:
            return pattern is None or pattern.matches(path)
    else:
        named = names_module(target, budget)
        exact = frozenset(target or ())
        layers = _layers(config, budget)

        def chosen(path: str) -> bool:
            return path in exact or (named(path) and layers(path))

    def targeted(path: str) -> bool:
        return not excluded(path) and not any(rule(path) for rule in saved) and chosen(path)

    return targeted


def names_module(names: Collection[str] | str | None, budget: Budget | None = None) -> Callable[[str], bool]:
    """A predicate: a list of names (equal, or a suffix of the path) or a pattern (full match) matches a module path."""
    if not names:
        return lambda _: False
    if isinstance(names, str):
        return Regex(names, budget=budget).matches
    known = frozenset(names)

    def ends(path: str) -> bool:
        # Test every suffix of the path instead of every name: a list may have thousands of names.
        if path in known:
            return True
        position = path.find(".")
        while position >= 0:
            if path[position + 1 :] in known:
                return True
            position = path.find(".", position + 1)
        return False

    return ends


def catastrophic_pattern(
    config: AdapterConfig, paths: Iterable[str], budget: Budget | None = None
) -> tuple[str, str] | None:
    """The first (key, pattern) of a config that causes catastrophic backtracking in `re`, which PEFT uses; None if
    there is none.

    Tested on one path of each form (ignoring numbers) and on texts that repeat words and characters of the pattern.
    """
    forms = {"".join("0" if character.isdecimal() else character for character in path): path for path in paths}
    samples = sorted(forms.values(), key=len)[-_MAX_PATHS:]
    for key, text, pattern in _expressions(config):
        probes = [(piece * _PROBE)[:_PROBE] + "!" for piece in ("a", "0", "a.0", *_pieces(text))]
        regex = Regex(pattern, budget=budget)
        if any(regex.backtracks(sample, _MAX_STEPS) for sample in (*probes, *samples)):
            return key, text
    return None


def _pieces(text: str) -> list[str]:
    """A few words and characters of a pattern, which its quantifiers are likely to repeat."""
    words = sorted({"".join(run) for plain, run in groupby(text, _PLAIN.__contains__) if plain}, key=len)
    return words[:8] + sorted({character for word in words for character in word})[:8]


def _expressions(config: AdapterConfig) -> Iterable[tuple[str, str, str]]:
    """(key, text in the config, expression that PEFT builds from it) of everything except plain names."""
    for key, value in (
        ("target_modules", config.target_modules),
        ("exclude_modules", config.exclude_modules),
        ("feedforward_modules", config.feedforward_modules),
    ):
        if isinstance(value, str) and value.lower() != ALL_LINEAR:
            yield key, value, value
    for key, names in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        if config.peft_type != "ADALORA":
            yield from ((key, name, rf"(.*\.)?({name})$") for name in names if _literal(name.removeprefix("^")) is None)
    for name in config.layers_pattern or ():
        if _literal(name) is None:
            yield "layers_pattern", name, rf"(?:^|.*?\.){name}"
    for name in config.modules_to_save:
        if _literal(name) is None:
            yield "modules_to_save", name, rf"(^|.*\.){name}($|\..*)"


def _literal(text: str) -> list[str] | None:
    """The characters of an expression without operators ("" for a dot, which matches any); None for others."""
    characters: list[str] = []
    position = 0
    text = text.removesuffix("$") if not text.endswith("\\$") else text
    while position < len(text):
        character = text[position]
        if text.startswith("\\.", position):
            character, position = ".", position + 1
            characters.append(character)
        elif character == ".":
            characters.append("")
        elif character in _PLAIN:
            characters.append(character)
        else:
            return None
        position += 1
    return characters or None


def _key_rule(key: str, budget: Budget | None) -> Callable[[str], bool]:
    characters = _literal(key.removeprefix("^"))
    if characters is None:
        return Regex(rf"(.*\.)?({key})$", prefix=True, budget=budget).matches
    anchored = key.startswith("^")

    def ends(path: str) -> bool:
        start = len(path) - len(characters)
        if start < 0 or (start > 0 and (anchored or path[start - 1] != ".")):
            return False
        return all(not known or known == path[start + place] for place, known in enumerate(characters))

    return ends


def _saved_rule(name: str, budget: Budget | None) -> Callable[[str], bool]:
    if not name or any(character not in _PLAIN for character in name):
        return Regex(rf"(^|.*\.){name}($|\..*)", prefix=True, budget=budget).matches
    return lambda path: f".{name}." in f".{path}."


def _layers(config: AdapterConfig, budget: Budget | None) -> Callable[[str], bool]:
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return lambda _: True
    numbers = frozenset(wanted if isinstance(wanted, list) else [wanted])
    patterns = [Regex(rf"(?:^|.*?\.){pattern}", budget=budget) for pattern in config.layers_pattern or ()]

    def inside(path: str) -> bool:
        index = _layer_index(path, patterns)
        return index is not None and index in numbers

    return inside


def _layer_index(path: str, patterns: list[Regex]) -> int | None:
    """The first segment of digits after a pattern's match; without patterns, after at least two segments."""
    segments = path.split(".")
    rules: list[Regex | None] = [*patterns] or [None]
    for rule in rules:
        for place in range(1 if rule else 2, len(segments) - 1):
            segment = segments[place]
            digits = segment.isdecimal() and len(segment) < 10
            if digits and (rule is None or rule.matches(".".join(segments[:place]))):
                return int(segment)
    return None
