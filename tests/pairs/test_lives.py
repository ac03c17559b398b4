"""The lives of a pair: what exchangeInfo says, one answer after the other, and what is believed of it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.binance.symbols import NEVER_MS, Instrument
from marketfeed.pairs.lives import (
    DELIVERED,
    Doubt,
    Lives,
    Seen,
    after,
    life_at,
    mistakes,
    seen,
)

DAY_MS = schema.DAY_MS
PAIR, SYMBOL = "LIT/USDT:USDT", "LITUSDT"
T0_MS = 20_000 * DAY_MS


def row(
    listed_ms: int, delivery_ms: int = NEVER_MS, status: str = "TRADING", symbol: str = SYMBOL
) -> Instrument:
    return Instrument(symbol, PAIR, "USDT", status, "PERPETUAL", listed_ms, delivery_ms)


def told(*answers: tuple[Instrument, int], traded: bool | None = None) -> Lives:
    lives: Lives = ()
    for instrument, now_ms in answers:
        lives, _ = after(lives, seen(instrument, now_ms), traded)
    return lives


def spans(lives: Lives) -> list[tuple[int, int | None]]:
    return [(life.listed_ms, life.ended_ms) for life in lives]


def test_a_symbol_that_comes_back_after_its_end_has_two_lives() -> None:
    file = Path(__file__).parent.parent / "data" / "02_reused_symbol.json"
    first, second = json.loads(file.read_text())

    def read(item: dict[str, int]) -> Instrument:
        return row(item["onboardDate"], item["deliveryDate"])

    ended_ms, listed_ms = first["deliveryDate"], second["onboardDate"]
    lives = told((read(first), ended_ms - DAY_MS), (read(second), listed_ms))
    assert spans(lives) == [(first["onboardDate"], ended_ms), (listed_ms, None)]
    for timeframe_ms in schema.TIMEFRAMES_MS.values():
        before = life_at(
            lives, schema.floor_to(ended_ms, timeframe_ms) - timeframe_ms, timeframe_ms
        )
        assert before is lives[0]
        assert life_at(lives, schema.floor_to(listed_ms, timeframe_ms), timeframe_ms) is lives[1]
        assert life_at(lives, (ended_ms + listed_ms) // 2, timeframe_ms) is None


@pytest.mark.parametrize("status", ["DELIVERING", "DELIVERED", "SETTLING", "CLOSE"])
def test_a_status_ends_a_life_once(status: str) -> None:
    lives = told(
        (row(T0_MS), T0_MS),
        (row(T0_MS, status=status), T0_MS + 5),
        (row(T0_MS, status=status), T0_MS + 9),
    )
    assert spans(lives) == [(T0_MS, T0_MS + 5)]
    assert status in lives[0].evidence


@pytest.mark.parametrize("status", ["PRE_DELIVERING", "PRE_SETTLE", "TRADING_HALT", "", "NEW_WORD"])
def test_any_other_status_ends_nothing(status: str) -> None:
    lives = told((row(T0_MS), T0_MS), (row(T0_MS, status=status), T0_MS + 5))
    assert spans(lives) == [(T0_MS, None)]


def test_an_end_that_is_moved_or_withdrawn_goes_on_with_the_same_life() -> None:
    end_ms = T0_MS + 5 * DAY_MS
    first = (row(T0_MS, end_ms), T0_MS)
    assert spans(told(first)) == [(T0_MS, end_ms)]
    assert spans(told(first, (row(T0_MS, end_ms + 7), T0_MS))) == [(T0_MS, end_ms + 7)]
    back = told(first, (row(T0_MS), end_ms + DAY_MS))
    assert spans(back) == [(T0_MS, None)]
    assert DELIVERED not in back[0].evidence
    # By its status it is over before the day that was announced.
    early = told(first, (row(T0_MS, end_ms, "SETTLING"), T0_MS + DAY_MS))
    assert spans(early) == [(T0_MS, T0_MS + DAY_MS)]


def test_a_later_date_without_an_end_is_asked_about() -> None:
    first = told((row(T0_MS), T0_MS))
    later = seen(row(T0_MS + 40 * DAY_MS + 17), T0_MS + 41 * DAY_MS)
    lives, doubt = after(first, later)
    assert lives == first
    assert doubt == Doubt(PAIR, SYMBOL, T0_MS + 40 * DAY_MS + 17)
    assert doubt.day_ms == T0_MS + 39 * DAY_MS

    traded, doubt = after(first, later, True)
    assert (spans(traded), doubt) == ([(T0_MS, None)], None)

    other, doubt = after(first, later, False, T0_MS + 30 * DAY_MS + 5)
    assert doubt is None
    assert spans(other) == [(T0_MS, T0_MS + 30 * DAY_MS + 5), (T0_MS + 40 * DAY_MS + 17, None)]


def test_an_earlier_date_corrects_a_life_and_never_one_before_it() -> None:
    known = told((row(T0_MS), T0_MS))
    assert spans(after(known, seen(row(T0_MS - 3 * DAY_MS), T0_MS))[0]) == [
        (T0_MS - 3 * DAY_MS, None)
    ]
    two = told((row(T0_MS, T0_MS + DAY_MS), T0_MS), (row(T0_MS + 5 * DAY_MS), T0_MS + 5 * DAY_MS))
    assert len(two) == 2
    # An answer of yesterday changes nothing.
    assert after(two, seen(row(T0_MS, T0_MS + DAY_MS), T0_MS))[0] == two


def test_another_symbol_under_the_same_name_waits_for_the_end() -> None:
    known = told((row(T0_MS), T0_MS))
    other = seen(row(T0_MS + DAY_MS, symbol="LIT2USDT"), T0_MS + DAY_MS)
    assert after(known, other) == (known, None)
    ended = told((row(T0_MS, T0_MS + 5), T0_MS))
    assert [life.symbol for life in after(ended, other)[0]] == [SYMBOL, "LIT2USDT"]


_TIMES = st.integers(0, 60).map(lambda at: T0_MS + at * DAY_MS // 3)


@given(
    st.lists(
        st.tuples(
            st.builds(
                row,
                _TIMES,
                st.one_of(st.just(NEVER_MS), st.just(0), _TIMES),
                st.sampled_from(["TRADING", "CLOSE", "SETTLING", "HALT"]),
                st.sampled_from([SYMBOL, "LIT2USDT"]),
            ),
            st.sampled_from([None, True, False]),
            st.one_of(st.none(), _TIMES),
        ),
        max_size=12,
    )
)
def test_whatever_is_answered_lives_do_not_overlap(
    answers: list[tuple[Instrument, bool | None, int | None]],
) -> None:
    lives: Lives = ()
    for day, (instrument, traded, newest_ms) in enumerate(answers):
        before = lives
        said: Seen = seen(instrument, T0_MS + day * DAY_MS)
        lives, doubt = after(lives, said, traded, newest_ms)
        assert mistakes(lives) == []
        assert doubt is None or (traded is None and lives == before)
        # Said once more, it changes nothing.
        again, _ = after(lives, said, traded, newest_ms)
        assert again == lives
        # A life that was over before the current one stays as it was.
        assert lives[: max(0, len(before) - 1)] == before[:-1]
        for length_ms in schema.TIMEFRAMES_MS.values():
            owners = [life.owned(length_ms) for life in lives]
            for (_, end_ms), (first_ms, _) in pairwise(owners):
                assert end_ms is not None
                assert end_ms <= first_ms
