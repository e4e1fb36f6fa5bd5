"""Which modules a config names: PEFT's rules for targets and patterns, matched where they cannot hang.

Rules as peft 0.21.2 has them (`check_target_module_exists`, `get_pattern_key`); the regular expressions go to
`lora_reg.spec.regex`, never to `re`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from lora_reg.spec.adapter.config import AdapterConfig
from lora_reg.spec.regex import Regex

ALL_LINEAR = "all-linear"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def pattern_key(keys: Iterable[str]) -> Callable[[str], str | None]:
    """A function that gives the first key that means a module: `re.match(rf"(.*\\.)?({key})$", path)`; None: none."""
    rules = [(key, _key_rule(key)) for key in keys]

    def find(path: str) -> str | None:
        return next((key for key, rule in rules if rule(path)), None)

    return find


def targets(config: AdapterConfig) -> Callable[[str], bool]:
    """A function that tells whether the config targets a module path. "all-linear" is not decided here: it gives
    True for every path that is not excluded, and the caller leaves out what is not linear."""
    excluded = _named(config.exclude_modules)
    saved = [Regex(rf"(^|.*\.){name}($|\..*)", prefix=True) for name in config.modules_to_save]
    target = config.target_modules
    if isinstance(target, str):
        everything = target.lower() == ALL_LINEAR
        pattern = None if everything else Regex(target)

        def chosen(path: str) -> bool:
            return pattern is None or pattern.matches(path)
    else:
        named = _named(target)
        exact = frozenset(target or ())
        layers = _layers(config)

        def chosen(path: str) -> bool:
            return path in exact or (named(path) and layers(path))

    def targeted(path: str) -> bool:
        return not excluded(path) and not any(rule.matches(path) for rule in saved) and chosen(path)

    return targeted


def names_module(names: Collection[str] | str | None) -> Callable[[str], bool]:
    """Whether a list of names (equal, or the path's end) or a pattern (full match) means a path; None means none."""
    return _named(names)


def _named(names: Collection[str] | str | None) -> Callable[[str], bool]:
    if not names:
        return lambda path: False
    if isinstance(names, str):
        return Regex(names).matches
    known = frozenset(names)

    def ends(path: str) -> bool:
        # Every tail of the path that begins a segment, instead of every name: a list may hold thousands.
        if path in known:
            return True
        position = path.find(".")
        while position >= 0:
            if path[position + 1 :] in known:
                return True
            position = path.find(".", position + 1)
        return False

    return ends


def _key_rule(key: str) -> Callable[[str], bool]:
    if key and all(character in _PLAIN for character in key):
        return lambda path: path == key or path.endswith(f".{key}")
    return Regex(rf"(.*\.)?({key})$", prefix=True).matches


def _layers(config: AdapterConfig) -> Callable[[str], bool]:
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return lambda path: True
    numbers = frozenset(wanted if isinstance(wanted, list) else [wanted])
    patterns = [Regex(rf"(?:^|.*?\.){pattern}") for pattern in config.layers_pattern or ()]

    def inside(path: str) -> bool:
        index = _layer_index(path, patterns)
        return index is not None and index in numbers

    return inside


def _layer_index(path: str, patterns: list[Regex]) -> int | None:
    """The first whole segment of digits behind a pattern's match; without patterns, behind at least two segments."""
    segments = path.split(".")
    rules = patterns or [None]
    for rule in rules:
        for place in range(1 if rule else 2, len(segments) - 1):
            segment = segments[place]
            digits = segment.isdecimal() and len(segment) < 10
            if digits and (rule is None or rule.matches(".".join(segments[:place]))):
                return int(segment)
    return None
