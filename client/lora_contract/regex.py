"""Regular expressions of untrusted configs, matched in time linear in the text, without backtracking.

Supports the subset that adapter configs use, with the semantics of Python's `re` (version 3.11, no flags): literals,
`.`, classes, `\\d \\w \\s` and their negations, `\\b \\B ^ $ \\A \\Z`, groups, alternation, greedy and lazy
repetition, lookahead. Features of backtracking engines (backreferences, lookbehind, atomic groups, flags) are refused
by name.

The pattern is compiled to a nondeterministic automaton. The text is read backwards, keeping at each position the set of
states from which the rest matches; this makes a lookahead a membership test of its first state. Texts are module paths
without line breaks, so `$` is the end of the text.
"""

from __future__ import annotations

from typing import Final

from lora_contract.regex_syntax import Node, PatternError, is_word, parse_pattern

MAX_STATES: Final = 20_000
MAX_WORK: Final = 3_000_000  # a few seconds; the longest patterns of trainers take a fifth of it
_MAX_MEMO: Final = 20_000

# A condition of an empty step: an assertion's letter, or (first state of a lookahead, whether it is negated).
_Condition = str | tuple[int, bool] | None


class Budget:
    """The work allowed for all patterns of one config together, whatever they are matched against."""

    def __init__(self, work: int = MAX_WORK) -> None:
        self._left = work

    def spend(self, work: int) -> None:
        """Spend a part of the budget. Raises PatternError if it is exceeded."""
        self._left -= work
        if self._left < 0:
            raise PatternError("Matching the patterns against the modules of this base takes too long.")


class Regex:
    """A compiled pattern. `matches` corresponds to `re.fullmatch` or, with `prefix=True`, to `re.match`, as a bool.

    Raises PatternError if the pattern is malformed, too large or unsupported, or if the budget is exceeded.
    """

    def __init__(self, pattern: str, *, prefix: bool = False, budget: Budget | None = None) -> None:
        self._steps: list[tuple[Node, int] | None] = []
        self._sources: list[list[tuple[int, _Condition]]] = []
        self._group_of: list[int] = []
        self._lookahead_finals: list[tuple[int, int]] = []  # (group, final state), inner lookaheads first
        self._groups = 0
        self._budget = budget or Budget()
        self._prefix = prefix
        self._memo: dict[tuple[frozenset[int], str, bool, bool, bool], frozenset[int]] = {}
        self._start, self._final = self._state(0), self._state(0)
        self._build(parse_pattern(pattern), self._start, self._final, 0)

    def matches(self, text: str) -> bool:
        self._budget.spend(1 + len(text) // 8)  # memoized steps are cheap
        states: frozenset[int] = frozenset()
        for position in range(len(text), -1, -1):
            here = text[position] if position < len(text) else ""
            boundary = is_word(text[position - 1] if position else "") != is_word(here)
            key = (states, here, boundary, position == 0, position == len(text))
            found = self._memo.get(key)
            if found is None:
                found = self._before(*key)
                if len(self._memo) < _MAX_MEMO:
                    self._memo[key] = found
            states = found
        return self._start in states

    def backtracks(self, text: str, limit: int) -> bool:
        """Whether a backtracking engine could need more than `limit` steps on a text, by counting the nodes of its
        search tree without searching it. Assertions are assumed to hold; an empty iteration ends a loop, as in
        engines."""
        forward: list[list[int]] = [[] for _ in self._steps]
        for target, sources in enumerate(self._sources):
            for source, condition in sources:
                forward[source].append(target)
                if isinstance(condition, tuple):
                    forward[source].append(condition[0])
        moves = [(state, step) for state, step in enumerate(self._steps) if step is not None]
        entered: dict[int, int] = {}  # state entered by a character -> nodes below it
        for position in range(len(text), -1, -1):
            taken = {s: entered[step[1]] for s, step in moves if step[1] in entered and step[0].accepts(text[position])}
            self._budget.spend(len(moves))
            if position == 0:
                return _nodes(self._start, forward, taken, limit, self._budget) > limit
            before = {step[1] for _, step in moves if step[0].accepts(text[position - 1])}
            entered = {state: _nodes(state, forward, taken, limit, self._budget) for state in before}
        return False

    def _before(self, after: frozenset[int], here: str, boundary: bool, first: bool, last: bool) -> frozenset[int]:
        """The states from which the rest matches, one character before those of `after`."""
        self._budget.spend(len(self._steps))
        states: set[int] = set()
        if here:
            states = {s for s, step in enumerate(self._steps) if step and step[1] in after and step[0].accepts(here)}
        holds = {"^": first, "$": last, "b": boundary, "B": not boundary}

        def spread(group: int, final: int | None) -> None:
            pending = [state for state in states if self._group_of[state] == group]
            if final is not None:
                states.add(final)
                pending.append(final)
            while pending:
                for source, condition in self._sources[pending.pop()]:
                    if source in states:
                        continue
                    if isinstance(condition, tuple):
                        if (condition[0] in states) == condition[1]:
                            continue
                    elif condition is not None and not holds[condition]:
                        continue
                    states.add(source)
                    pending.append(source)

        # Inner lookaheads first: the set of a lookahead must be complete before it is tested.
        for group, final in self._lookahead_finals:
            spread(group, final)
        spread(0, self._final if self._prefix or last else None)
        return frozenset(states)

    def _state(self, group: int) -> int:
        if len(self._steps) >= MAX_STATES:
            raise PatternError(f"The pattern needs more than {MAX_STATES} states.")
        self._budget.spend(1)
        self._steps.append(None)
        self._sources.append([])
        self._group_of.append(group)
        return len(self._steps) - 1

    def _empty(self, source: int, target: int, condition: _Condition = None) -> None:
        self._sources[target].append((source, condition))

    def _build(self, node: Node, source: int, target: int, group: int) -> None:
        if node.kind == "set":
            self._steps[source] = (node, target)
        elif node.kind == "assert":
            self._empty(source, target, node.text)
        elif node.kind == "cat":
            self._chain(node.parts, source, target, group)
        elif node.kind == "alt":
            for part in node.parts:
                entry = self._state(group)
                self._empty(source, entry)
                self._build(part, entry, target, group)
        elif node.kind == "look":
            self._groups += 1
            inner = self._groups
            first, final = self._state(inner), self._state(inner)
            self._build(node.parts[0], first, final, inner)
            self._lookahead_finals.append((inner, final))
            self._empty(source, target, (first, node.negated))
        else:
            self._repeat(node, source, target, group)

    def _chain(self, parts: tuple[Node, ...], source: int, target: int, group: int) -> None:
        for part in parts:
            entry, end = self._state(group), self._state(group)
            self._empty(source, entry)
            self._build(part, entry, end, group)
            source = end
        self._empty(source, target)

    def _repeat(self, node: Node, source: int, target: int, group: int) -> None:
        part = node.parts[0]
        if node.least > MAX_STATES or (node.most is not None and node.most > MAX_STATES):
            raise PatternError(f"The pattern needs more than {MAX_STATES} states.")
        for _ in range(node.least):
            entry, end = self._state(group), self._state(group)
            self._empty(source, entry)
            self._build(part, entry, end, group)
            source = end
        self._empty(source, target)
        if node.most is None:
            entry, end = self._state(group), self._state(group)
            self._empty(source, entry)
            self._build(part, entry, end, group)
            self._empty(end, entry)
            self._empty(end, target)
            return
        for _ in range(node.most - node.least):
            entry, end = self._state(group), self._state(group)
            self._empty(source, entry)
            self._build(part, entry, end, group)
            self._empty(end, target)
            source = end


def _nodes(root: int, forward: list[list[int]], taken: dict[int, int], limit: int, budget: Budget) -> int:
    """Count the nodes of the search tree below a state. taken: nodes after each character step from here, by state."""
    counts: dict[int, int] = {}
    open_states: set[int] = set()
    stack = [(root, False)]
    while stack:
        state, done = stack.pop()
        if done:
            total = 1 + taken.get(state, 0) + sum(counts.get(target, 0) for target in forward[state])
            counts[state] = min(total, limit + 1)
        elif state not in open_states:
            open_states.add(state)
            stack.append((state, True))
            stack.extend((target, False) for target in forward[state] if target not in open_states)
    budget.spend(len(counts))
    return counts[root]
