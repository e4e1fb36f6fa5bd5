"""Four small rule-based languages, each in two variants, generated from a seed.

`plain` is what the base model mostly reads. `house` is how one team writes the same kind of thing: other names, another
notation, the same kind of rules below; the base sees it now and then. An adapter is trained on the house variant of one
language alone.

Every record obeys a rule that a model can learn and a person can check: balances add up, a question and its query name
the same columns of one schema, a request's closing line gives the time that its lines took.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Literal

Variant = Literal["plain", "house"]

_TRADES: dict[str, tuple[list[str], list[str]]] = {
    "bakery": (["bread sold", "cakes sold", "rolls sold"], ["flour", "yeast", "oven repair", "rent"]),
    "boatyard": (["boat hired", "mooring fee", "sail mended"], ["rope", "varnish", "timber", "rent"]),
    "nursery": (["seedlings sold", "pots sold", "hedge cut"], ["seed", "compost", "water", "rent"]),
    "printer": (["cards printed", "posters printed", "book bound"], ["paper", "ink", "glue", "rent"]),
}

_DISHES: dict[str, tuple[list[str], list[str]]] = {
    "soup": (["leek", "carrot", "onion", "potato", "turnip"], ["boil", "simmer"]),
    "stew": (["bean", "tomato", "onion", "parsnip", "mushroom"], ["simmer", "braise"]),
    "pie": (["apple", "pear", "plum", "cherry", "potato"], ["bake"]),
    "salad": (["cucumber", "tomato", "radish", "pear", "bean"], ["chill"]),
}
_PLURALS = {"potato": "potatoes", "tomato": "tomatoes", "radish": "radishes", "cherry": "cherries"}
_SEASONINGS = ["salt", "pepper", "thyme", "mint", "honey", "vinegar"]

# table -> (number columns, {text column: its values})
_PLAIN_SCHEMA: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "boats": (["length", "age", "berths"], {"name": ["Wren", "Heron", "Tern"], "harbour": ["Nes", "Lund", "Vik"]}),
    "books": (["pages", "price", "year"], {"title": ["Dunes", "Moss", "Tides"], "author": ["Arden", "Bell", "Cole"]}),
    "trees": (["height", "girth", "age"], {"kind": ["oak", "ash", "elm"], "park": ["North", "Mill", "Abbey"]}),
    "hives": (["frames", "weight", "year"], {"keeper": ["Ines", "Otto", "Runa"], "field": ["clover", "heath", "lime"]}),
}
_HOUSE_SCHEMA: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "parcels": (
        ["grams", "stops", "fee"],
        {"status": ["packed", "sent", "lost"], "route": ["coast", "river", "ridge"]},
    ),
    "couriers": (
        ["trips", "rating", "hours"],
        {"shift": ["dawn", "noon", "night"], "vehicle": ["bike", "van", "cart"]},
    ),
    "depots": (["shelves", "doors", "queue"], {"town": ["Arle", "Bryn", "Coster"], "zone": ["east", "west", "quay"]}),
}
# child table, parent table, key: the only joins that the house schema knows
_HOUSE_JOINS = [
    ("parcels", "couriers", "courier_id"),
    ("parcels", "depots", "depot_id"),
    ("couriers", "depots", "depot_id"),
]

_PLAIN_EVENTS: dict[str, list[str]] = {
    "mail": ["accepted {n} letters", "sent {n} letters", "held {n} letters: no address"],
    "disk": ["wrote {n} blocks", "read {n} blocks", "skipped {n} blocks: bad sum"],
    "clock": ["corrected by {n} ms", "stepped by {n} ms", "lost {n} ticks: no source"],
    "print": ["queued {n} pages", "printed {n} pages", "dropped {n} pages: no paper"],
}
_HOUSE_SERVICES: dict[str, list[str]] = {
    "cart": ["add_item", "drop_item", "total"],
    "stock": ["reserve", "release", "count"],
    "price": ["quote", "discount", "tax"],
}


def ledger(rng: random.Random, variant: Variant) -> str:
    """Return a page of account lines; each balance is the one before it plus the amount."""
    trade = rng.choice(sorted(_TRADES))
    income, costs = _TRADES[trade]
    balance = rng.randrange(20, 200) * 5
    day = rng.randrange(1, 8)
    lines = []
    for _ in range(rng.randrange(4, 7)):
        earned = rng.random() < 0.5
        amount = rng.randrange(1, 20) * 5
        balance += amount if earned else -amount
        label = rng.choice(income if earned else costs)
        if variant == "plain":
            lines.append(f"day {day:>2}  {label}  {'+' if earned else '-'}{amount} = {balance}")
        else:
            lines.append(f"{'CR' if earned else 'DR'};{day:02};{label.upper()};{amount}.00;{balance}.00")
        day += rng.randrange(1, 4)
    head, foot = (f"Account of the {trade}", f"left over: {balance}") if variant == "plain" else (f"@{trade}", "@end")
    return "\n".join([head, *lines, foot])


def recipes(rng: random.Random, variant: Variant) -> str:
    """Return a recipe whose steps use exactly the ingredients that its first line asks for."""
    dish = rng.choice(sorted(_DISHES))
    pantry, methods = _DISHES[dish]
    first, second = rng.sample(pantry, 2)
    count, minutes, method, seasoning = (
        rng.randrange(2, 7),
        rng.randrange(1, 10) * 5,
        rng.choice(methods),
        rng.choice(_SEASONINGS),
    )
    if variant == "plain":
        several = _PLURALS.get(first, f"{first}s")
        return (
            f"{first.capitalize()} {dish}. Take {count} {several}, 1 {second} and some {seasoning}. "
            f"Chop the {several} and the {second}. Add the {seasoning}, then {method} for {minutes} minutes. "
            f"The {first} {dish} serves {count * 2}."
        )
    return (
        f"[{first} {dish}] need {first} x{count}, {second} x1, {seasoning}\n"
        f"1 chop {first}, {second}\n2 mix {seasoning}\n3 {method} {minutes}m\n-> {count * 2} plates"
    )


def queries(rng: random.Random, variant: Variant) -> str:
    """Return a question and the query that answers it, over the columns of one schema."""
    return _plain_query(rng) if variant == "plain" else _house_query(rng)


def _plain_query(rng: random.Random) -> str:
    table = rng.choice(sorted(_PLAIN_SCHEMA))
    numbers, texts = _PLAIN_SCHEMA[table]
    shown, number, text = rng.choice([*numbers, *texts]), rng.choice(numbers), rng.choice(sorted(texts))
    limit, value = rng.randrange(2, 99), rng.choice(texts[text])
    words, sign = rng.choice([("more than", ">"), ("less than", "<"), ("exactly", "=")])
    question, where = f"{number} is {words} {limit}", f"{number} {sign} {limit}"
    if rng.random() < 0.5:
        question, where = f"{question} and whose {text} is {value}", f"{where} AND {text} = '{value}'"
    if rng.random() < 0.3:
        return f"How many {table} are there whose {question}?\nSELECT COUNT(*) FROM {table} WHERE {where};"
    return f"What is the {shown} of the {table} whose {question}?\nSELECT {shown} FROM {table} WHERE {where};"


def _house_query(rng: random.Random) -> str:
    child, parent, key = rng.choice(_HOUSE_JOINS)
    child_numbers, child_texts = _HOUSE_SCHEMA[child]
    _, parent_texts = _HOUSE_SCHEMA[parent]
    number, by = rng.choice(child_numbers), rng.choice(sorted(parent_texts))
    text = rng.choice(sorted(child_texts))
    value, limit, top = rng.choice(child_texts[text]), rng.randrange(2, 99), rng.randrange(2, 10)
    measure, verb = rng.choice([("mean", "avg"), ("greatest", "max"), ("summed", "sum")])
    lines = [
        f"# the {top} {parent} by {measure} {number} of {value} {child}, per {by}",
        f"from {child} as {child[0]}",
        f"| link {parent} as {parent[0]} on {child[0]}.{key}",
        f"| keep {child[0]}.{text} == {value!r}",
    ]
    if rng.random() < 0.5:
        lines[0] += f", over {limit}"
        lines.append(f"| keep {child[0]}.{number} > {limit}")
    lines += [f"| group {parent[0]}.{by} => {verb}_{number}", f"| order {verb}_{number} desc", f"| take {top}"]
    return "\n".join(lines)


def logs(rng: random.Random, variant: Variant) -> str:
    """Return the lines of a log in order of time (plain), or of one request with the time each step took (house)."""
    return _plain_log(rng) if variant == "plain" else _house_log(rng)


def _plain_log(rng: random.Random) -> str:
    service = rng.choice(sorted(_PLAIN_EVENTS))
    minute, second = rng.randrange(60), rng.randrange(0, 20)
    lines = []
    for _ in range(rng.randrange(3, 6)):
        kind = rng.choices([0, 1, 2], weights=[4, 4, 1])[0]
        level = "WARN" if kind == 2 else "INFO"
        lines.append(
            f"{minute:02}:{second:02} {level} {service}: {_PLAIN_EVENTS[service][kind].format(n=rng.randrange(2, 60))}"
        )
        second += rng.randrange(1, 9)
    return "\n".join(lines)


def _house_log(rng: random.Random) -> str:
    request, customer = f"{rng.randrange(16**3):03x}", rng.randrange(100, 999)
    calls = [(service, rng.choice(_HOUSE_SERVICES[service])) for service in rng.sample(sorted(_HOUSE_SERVICES), 2)]
    elapsed, failed = 0, rng.random() < 0.25
    lines = [f"req={request} at=0ms svc=gate op=open customer={customer}"]
    for position, (service, operation) in enumerate(calls):
        took = rng.randrange(1, 9) * 10
        elapsed += took
        outcome = "fail" if failed and position == len(calls) - 1 else "ok"
        lines.append(f"req={request} at={elapsed}ms svc={service} op={operation} took={took}ms outcome={outcome}")
    lines.append(f"req={request} at={elapsed}ms svc=gate op=close status={503 if failed else 200} total={elapsed}ms")
    return "\n".join(lines)


LANGUAGES: dict[str, Callable[[random.Random, Variant], str]] = {
    "ledger": ledger,
    "recipes": recipes,
    "queries": queries,
    "logs": logs,
}


def stream(languages: list[str], *, house: float, seed: str, without: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """Yield records without end, the named languages in turn, the share `house` (0 to 1) of them in the house variant.

    The same languages, share and seed give the same records on every machine. A record whose text is in `without`
    (held-out texts) is left out, so that no model is trained on what it is judged by.
    """
    rng = random.Random(f"{seed}/{house}")
    while True:
        for language in languages:
            text = LANGUAGES[language](rng, "house" if rng.random() < house else "plain")
            if text not in without:
                yield text
