"""A pattern means the same in Python and in SQL, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, select

from lora_contract.glob import matches
from lora_contract.roles import Grant
from lora_registry.auth.principals import ANONYMOUS, Principal
from lora_registry.db.scope import Scope
from lora_registry.db.tables import Namespace
from tests.registry.conftest import Sites

NAMES = ("s-acme", "s-acme-a", "s-acme_a", "s-acme.a", "s-acme-a-b", "s-ac", "s-cme", "s-acmexa", "s-b")
PATTERNS = ("s-acme", "s-acme-*", "*-a", "s-*a*", "s-acme_*", "s-acme.*", "*", "s-**", "s-a*e-*-b", "x")


@pytest.fixture
def session(sites: Sites, database: str) -> Iterator[Session]:
    engine = sa.create_engine(sites(database, auth="token").database)
    session = Session(engine)
    session.add_all(Namespace(name=name, visibility="private", created_at=0) for name in NAMES)
    session.flush()
    yield session
    session.rollback()
    session.close()
    engine.dispose()


def found(session: Session, scope: Scope) -> set[str]:
    query = select(Namespace.name).where(scope.where(col(Namespace.name)), col(Namespace.name).in_(NAMES))
    return set(session.exec(query))


def test_patterns(session: Session) -> None:
    for patterns in itertools.chain([()], itertools.combinations(PATTERNS, 1), itertools.combinations(PATTERNS, 2)):
        scope = Scope(tuple(patterns))
        assert found(session, scope) == {name for name in NAMES if scope.has(name)}, patterns
    assert found(session, Scope(("s-acme_*",))) == {"s-acme_a"}, "an underscore is no wildcard"


def test_visibilities(session: Session) -> None:
    for name, visibility in (("s-b", "public"), ("s-ac", "internal")):
        session.get(Namespace, name).visibility = visibility
    session.flush()
    signed_in = Principal("x", (Grant("s-cme", "reader"),))
    assert found(session, signed_in.visible()) == {"s-cme", "s-b", "s-ac"}
    assert found(session, ANONYMOUS.visible()) == {"s-b"}
    assert found(session, signed_in.granted("reader")) == {"s-cme"}
    assert found(session, signed_in.granted("writer")) == set()


def test_a_grant_covers_a_pattern_only_if_it_covers_all_that_the_pattern_matches() -> None:
    names = ["".join(letters) for size in range(1, 5) for letters in itertools.product("ab", repeat=size)]
    patterns = ["".join(letters) for size in range(1, 4) for letters in itertools.product("ab*", repeat=size)]
    for wide, narrow in itertools.product(patterns, repeat=2):
        if matches(wide, narrow):
            assert all(matches(wide, name) for name in names if matches(narrow, name)), (wide, narrow)
