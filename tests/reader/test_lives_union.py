"""What collectors tell of a pair's lives, joined: against cases, and a model that goes by the day."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketfeed import schema
from reader.life import (
    ALL,
    SOON_MS,
    LifeRow,
    Statement,
    asked_across,
    before,
    current,
    joined,
    may_be_another,
    with_listing,
)
from reader.stores.lives_text import parsed

D = schema.DAY_MS
H = schema.HOUR_MS
CASE = Path(__file__).parents[1] / "data" / "02_reused_symbol.json"


def life(listed: float, ended: float | None = None, symbol: str = "ZZZUSDT") -> LifeRow:
    """Times in days."""
    return LifeRow(int(listed * D), None if ended is None else int(ended * D), symbol)


def told(day: float, *lives: LifeRow) -> Statement:
    return Statement(schema.floor_to(int(day * D), H), lives)


OLD, NEW = life(10, 40.4), life(90.5)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        pytest.param([], (), id="nobody tells"),
        pytest.param([told(100)], (), id="nothing is told"),
        pytest.param(
            [told(100, OLD, NEW), told(100, OLD, NEW)], (OLD, NEW), id="both tell the same"
        ),
        pytest.param([told(50, OLD), told(100, NEW)], (OLD, NEW), id="each knows one"),
        pytest.param(
            [told(30, life(10)), told(100, OLD, NEW)], (OLD, NEW), id="an end became known"
        ),
        pytest.param([told(50, OLD), told(60, life(10))], (life(10),), id="an end is withdrawn"),
        pytest.param(
            [told(50, OLD), told(60, life(10, 70))], (life(10, 70),), id="an end is moved"
        ),
        pytest.param(
            [told(50, life(10.2, 40)), told(60, life(10.9, 41))],
            (life(10.9, 41),),
            id="one day's listing is one life",
        ),
        pytest.param(
            [told(50.01, OLD), told(50.02, life(10))],
            (life(10),),
            id="in one hour the one that hides nothing",
        ),
        pytest.param(
            [told(100, life(10)), told(100, OLD, NEW)],
            (life(10, 90.5), NEW),
            id="one has not seen the break yet",
        ),
        pytest.param(
            [told(80, life(10)), told(100, NEW)],
            (life(10, 90.5), NEW),
            id="one had stopped before the other's listing: nobody says that it went on",
        ),
        pytest.param(
            [told(100, life(10)), told(100, life(60))],
            (life(10),),
            id="a date that is wrong: the contract was seen living then",
        ),
        pytest.param(
            [told(100, life(10)), told(110, life(60, 105))],
            (life(10, 105),),
            id="a date that is wrong, and a later end",
        ),
        pytest.param([told(100, life(0)), told(100, life(60))], (life(60),), id="a date unknown"),
        pytest.param(
            [told(50, life(0, 40.4)), told(100, OLD, NEW)], (OLD, NEW), id="the older one's unknown"
        ),
        pytest.param([told(50, life(0, 40.4), NEW)], (life(0, 40.4), NEW), id="known to nobody"),
    ],
)
def test_the_union(statements: list[Statement], expected: tuple[LifeRow, ...]) -> None:
    assert joined(statements) == expected
    assert joined(reversed(statements)) == expected


def test_the_case_that_was_reported() -> None:
    one, other = json.loads(CASE.read_text())
    lives = (
        LifeRow(one["onboardDate"], one["deliveryDate"], "ZZZUSDT"),
        LifeRow(other["onboardDate"], None, "ZZZUSDT"),
    )
    assert parsed(json.dumps(lives)) == lives
    statement = Statement(other["onboardDate"], lives)
    assert joined([statement, statement._replace(lives=lives[1:])]) == lives
    assert current(lives).life == lives[1]
    assert before(lives, other["onboardDate"] - D, D).life == lives[0]
    assert before(lives, one["onboardDate"] - D, D).life is None


@pytest.mark.parametrize("text", ["", "{}", "[[1]]", '[["a",null,"b"]]', "[[1,null,3]]", "[1]"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"lives: .* is expected, found"):
        parsed(text)


days = st.integers(1, 60)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[LifeRow], list[Statement]]:
    """True lives, and what collectors tell of them that began and stopped at some day."""
    edges = sorted(draw(st.sets(days, min_size=1, max_size=7)))
    pairs = [
        (edges[n], edges[n + 1] if n + 1 < len(edges) else None) for n in range(0, len(edges), 2)
    ]
    clock = st.sampled_from([0, 0.3, 0.7])
    lives = [
        life(listed + draw(clock), None if ended is None else ended + draw(clock))
        for listed, ended in pairs
    ]
    statements = []
    for _ in range(draw(st.integers(1, 4))):
        first, at = sorted((draw(days), draw(days) + 1))
        known = [
            one._replace(ended_ms=one.ended_ms if one.end_ms <= at * D else None)
            for one in lives
            if one.listed_ms <= at * D and one.end_ms > first * D
        ]
        statements.append(told(at, *known))
    return lives, statements


@given(histories())
@settings(max_examples=400, deadline=None)
def test_against_a_model_of_what_somebody_saw(
    history: tuple[list[LifeRow], list[Statement]],
) -> None:
    """Collectors that tell the truth, each of its time: all that one of them has seen is known."""
    lives, statements = history
    seen = {one.listed_ms for statement in statements for one in statement.lives}
    expected = []
    for one in lives:
        if one.listed_ms not in seen:
            continue
        knew_end = any(
            one.ended_ms is not None and other.listed_ms == one.listed_ms and other.ended_ms
            for statement in statements
            for other in statement.lives
        )
        expected.append(one if knew_end else one._replace(ended_ms=None))
    for number, (one, following) in enumerate(pairwise(expected)):
        if one.ended_ms is None:
            expected[number] = one._replace(ended_ms=following.listed_ms)
    assert joined(statements) == tuple(expected)


rows = st.builds(
    LifeRow,
    st.integers(0, 20).map(lambda n: n * D // 2),
    st.none() | st.integers(0, 40).map(lambda n: n * D // 2),
    st.just("ZZZUSDT"),
)
anything = st.builds(
    Statement,
    st.integers(0, 20).map(lambda n: n * D),
    st.lists(rows, max_size=4).map(lambda lives: tuple(sorted(lives, key=lambda one: one[0]))),
)


@given(st.lists(anything, max_size=4), st.integers(0, 1200), st.sampled_from([H, 4 * H, D]))
@settings(max_examples=400, deadline=None)
def test_whatever_is_told_lives_do_not_overlap_and_each_time_has_one(
    statements: list[Statement], hours: int, length_ms: int
) -> None:
    lives = joined(statements)
    assert joined(reversed(statements)) == lives
    for one, following in pairwise(lives):
        assert one.listed_ms < following.listed_ms
        assert one.end_ms <= following.listed_ms
        assert one.ended_ms is not None
    until_ms = schema.floor_to(hours * H, length_ms) + length_ms
    owners = [
        one
        for one in lives
        if schema.floor_to(one.listed_ms, length_ms)
        <= until_ms - length_ms
        < schema.floor_to(min(one.end_ms, 2**60), length_ms)
    ]
    part = before(lives, until_ms, length_ms)
    assert len(owners) <= 1
    assert not owners or part.life == owners[0]
    if not lives:
        assert part is ALL
    known = asked_across(lives, part, None)
    assert known == ([] if part.life is None else [part.life])


# --- what the catalog alone tells -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lives", "listed", "to", "expected"),
    [
        pytest.param((), 90.5, 100, (), id="nobody tells of lives"),
        pytest.param((OLD,), 90.5, 40.4, (OLD, life(90.5, None, "")), id="after an end"),
        pytest.param((OLD,), 90.5, 100, (OLD, life(90.5, None, "")), id="after an end, and seen"),
        pytest.param((OLD,), 10.3, 40.4, (OLD,), id="on the same day"),
        pytest.param((OLD,), 9.3, 40.4, (OLD,), id="before it"),
        pytest.param((OLD,), 30.3, 40.4, (OLD,), id="before its end"),
        pytest.param((life(10),), 90.5, 89, (life(10, 90.5), life(90.5, None, "")), id="no end"),
        pytest.param((life(10),), 90.5, 91, (life(10),), id="seen to go on"),
        pytest.param((life(0),), 90.5, 91, (life(0),), id="without a beginning"),
        pytest.param((OLD, NEW), 90.5, 80, (OLD, NEW), id="it is told"),
    ],
)
def test_a_listing_of_which_the_catalog_alone_tells(
    lives: tuple[LifeRow, ...], listed: float, to: float, expected: tuple[LifeRow, ...]
) -> None:
    assert with_listing(lives, int(listed * D), int(to * D)) == expected


@given(st.integers(0, 20), st.integers(0, 20) | st.none(), st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_lives_with_a_listing_do_not_overlap(
    begin: int, length: int | None, listed: int, to: int
) -> None:
    last = LifeRow(begin * H * 9, None if length is None else (begin + length) * H * 9, "A")
    found = with_listing((last,), listed * H * 9, to * H * 9)
    assert all(one.end_ms <= following.listed_ms for one, following in pairwise(found))
    assert found[0].listed_ms == last.listed_ms
    # Whose end is told keeps it.
    assert last.ended_ms is None or found[0] == last


def test_rows_beyond_what_is_told_may_be_anothers() -> None:
    assert not may_be_another((), 0, 5 * D)
    assert not may_be_another((OLD,), 0, 50 * D)  # none of them is behind its end
    assert not may_be_another((NEW,), 95 * D, 95 * D + SOON_MS)
    assert may_be_another((NEW,), 95 * D, 95 * D + SOON_MS + 1)
