"""What is learned of contracts' lives from exchangeInfo's answers, and how its rows are put right by it."""

import pytest
from msgspec.structs import replace

from marketfeed.binance.symbols import NEVER_MS, ExchangeInfo, Instrument, select_all, select_named
from marketfeed.pairs.known_lives import SILENT_FOR_MS, KnownLives
from marketfeed.pairs.lives import Doubt
from marketfeed.records import CatalogEntry, Life
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS

PAIR, SYMBOL = "LIT/USDT:USDT", "LITUSDT"
T0 = 20_000 * DAY_MS + 5 * HOUR_MS
FIRST = Instrument(SYMBOL, PAIR, "USDT", "TRADING", "PERPETUAL", T0 - 400 * DAY_MS, NEVER_MS)
BTC = Instrument("BTCUSDT", "BTC/USDT:USDT", "USDT", "TRADING", "PERPETUAL", 1, NEVER_MS)
SECOND = replace(FIRST, listed_ms=T0 + 30 * DAY_MS)


def info(*rows: Instrument, beside: tuple[Instrument, ...] = ()) -> ExchangeInfo:
    return ExchangeInfo({row.pair: row for row in rows}, 0, beside=beside)


def entry(listed_ms: int | None, ended_ms: int | None = None, **more: object) -> CatalogEntry:
    made = CatalogEntry(PAIR, SYMBOL, ("1m",), T0, listed_ms, ended_ms, T0)
    return replace(made, **more)  # type: ignore[arg-type]


def spans(known: KnownLives, pair: str = PAIR) -> list[tuple[int, int | None]]:
    return [(life.listed_ms, life.ended_ms) for life in known.lives[pair]]


def row(found: ExchangeInfo) -> tuple[int, int | None]:
    return found.instruments[PAIR].listed_ms, found.instruments[PAIR].ended_ms


@pytest.mark.parametrize("status", ["DELIVERING", "DELIVERED", "SETTLING", "CLOSE"])
def test_an_end_by_status_is_believed_at_the_second_answer_once_the_pair_is_silent(
    status: str,
) -> None:
    known = KnownLives()
    known.take_in(info(FIRST), T0)
    over = info(replace(FIRST, status=status))
    heard_ms = T0 + 4 * MINUTE_MS

    def answer(now_ms: int) -> int | None:
        return known.take_in(over, now_ms, lambda _: heard_ms).instruments[PAIR].ended_ms

    assert answer(T0 + 3 * MINUTE_MS) is None
    # Its frames still come.
    assert answer(heard_ms + SILENT_FOR_MS - 1) is None
    # It has ended with its last frame: what came until then is its own.
    assert answer(heard_ms + SILENT_FOR_MS) == heard_ms
    # And does not end once more.
    assert answer(T0 + DAY_MS) == heard_ms
    assert spans(known) == [(FIRST.listed_ms, heard_ms)]
    # Withdrawn, it is the same life.
    assert row(known.take_in(info(FIRST), T0 + 2 * DAY_MS)) == (FIRST.listed_ms, None)
    assert spans(known) == [(FIRST.listed_ms, None)]


def test_an_end_in_one_answer_alone_is_none() -> None:
    known = KnownLives()
    over, whole = info(replace(FIRST, status="SETTLING")), info(FIRST)
    for turn in range(8):
        known.take_in(over if turn % 2 else whole, T0 + turn * HOUR_MS)
    assert spans(known) == [(FIRST.listed_ms, None)]


def test_a_start_after_an_end_by_status_does_not_withdraw_it() -> None:
    known = KnownLives()
    ended = Life(PAIR, SYMBOL, FIRST.listed_ms, T0, "onboardDate; status SETTLING")
    known.remember({PAIR: (ended,)}, [entry(FIRST.listed_ms, T0)], {})
    found = known.take_in(info(replace(FIRST, status="SETTLING")), T0 + HOUR_MS)
    assert row(found) == (FIRST.listed_ms, T0)
    assert known.changed == set()


def test_a_symbol_that_comes_back_has_the_dates_of_its_second_life() -> None:
    known = KnownLives()
    known.take_in(info(replace(FIRST, delivery_ms=T0)), T0 - DAY_MS)
    found = known.take_in(info(SECOND), SECOND.listed_ms + MINUTE_MS)
    assert row(found) == (SECOND.listed_ms, None)
    assert spans(known) == [(FIRST.listed_ms, T0), (SECOND.listed_ms, None)]
    # A stale answer brings nothing back.
    known.take_in(info(replace(FIRST, delivery_ms=T0)), SECOND.listed_ms + HOUR_MS)
    assert spans(known) == [(FIRST.listed_ms, T0), (SECOND.listed_ms, None)]


def test_a_later_listing_without_an_end_is_believed_by_what_rest_says() -> None:
    for traded in (True, False):
        known = KnownLives()
        known.take_in(info(FIRST), T0)
        found = known.take_in(info(SECOND), SECOND.listed_ms + DAY_MS)
        # Until then all goes on by what was known.
        assert row(found) == (FIRST.listed_ms, None)
        assert known.doubts == (Doubt(PAIR, SYMBOL, SECOND.listed_ms),)
        known.answered(known.doubts[0], traded, None if traded else T0 + 7)
        found = known.take_in(info(SECOND), SECOND.listed_ms + DAY_MS + HOUR_MS)
        assert known.doubts == ()
        if traded:
            assert row(found) == (FIRST.listed_ms, None)
            assert len(known.lives[PAIR]) == 1
        else:
            assert row(found) == (SECOND.listed_ms, None)
            assert spans(known) == [(FIRST.listed_ms, T0 + 7), (SECOND.listed_ms, None)]


def test_a_pair_is_perhaps_replaced_until_it_is_known_what_became_of_its_contract() -> None:
    known = KnownLives()
    known.take_in(info(FIRST, BTC), T0)
    assert known.perhaps_replaced == set()
    # Its end was not seen: the next contract is announced, and then trades.
    pending = replace(SECOND, status="PENDING_TRADING", contract_type="")
    known.take_in(info(pending, BTC), SECOND.listed_ms - HOUR_MS)
    assert known.perhaps_replaced == {PAIR}
    known.take_in(info(SECOND, BTC), SECOND.listed_ms + HOUR_MS)
    (doubt,) = known.doubts
    assert known.perhaps_replaced == {PAIR}
    known.answered(doubt, False, T0)
    known.take_in(info(SECOND, BTC), SECOND.listed_ms + 2 * HOUR_MS)
    assert (known.perhaps_replaced, len(known.lives[PAIR])) == (set(), 2)


def test_a_date_that_is_wrong_and_an_end_that_is_known_replace_nothing() -> None:
    known = KnownLives()
    known.take_in(info(FIRST), T0)
    known.take_in(info(SECOND), SECOND.listed_ms + HOUR_MS)
    (doubt,) = known.doubts
    known.answered(doubt, True, None)
    known.take_in(info(SECOND), SECOND.listed_ms + 2 * HOUR_MS)
    assert (known.perhaps_replaced, spans(known)) == (set(), [(FIRST.listed_ms, None)])
    ended = KnownLives()
    ended.take_in(info(replace(FIRST, delivery_ms=T0)), T0 - HOUR_MS)
    ended.take_in(info(replace(SECOND, status="PENDING_TRADING", contract_type="")), T0 + HOUR_MS)
    assert ended.perhaps_replaced == set()


def test_another_symbol_has_the_name_once_the_first_has_ended() -> None:
    known = KnownLives()
    known.take_in(info(FIRST), T0)
    second = replace(SECOND, symbol="LIT2USDT")
    now_ms = SECOND.listed_ms + HOUR_MS
    found = known.take_in(info(second), now_ms)
    assert PAIR not in found.instruments
    refused = select_named(found, [PAIR]).refused
    assert refused == {PAIR: "was LITUSDT, is LIT2USDT: no end of LITUSDT is known"}
    # While the first one is listed as well, the name is its own.
    found = known.take_in(info(second, beside=(FIRST,)), now_ms)
    assert found.instruments[PAIR] == FIRST
    found = known.take_in(info(second, beside=(replace(FIRST, delivery_ms=T0 + 5),)), now_ms)
    assert found.instruments[PAIR] == second
    assert found.taken == {}
    assert spans(known) == [(FIRST.listed_ms, T0 + 5), (SECOND.listed_ms, None)]
    assert [life.symbol for life in known.lives[PAIR]] == [SYMBOL, "LIT2USDT"]
    older = found.contract(PAIR, SYMBOL)
    assert older is not None
    assert older.ended_ms == T0 + 5


def test_what_no_life_is_known_of_begins_with_the_catalog() -> None:
    known = KnownLives()
    known.remember({}, [entry(FIRST.listed_ms)], {(PAIR, "1d"): FIRST.listed_ms - HOUR_MS})
    assert spans(known) == [(FIRST.listed_ms, None)]
    # What is dropped has not ended, and what an older version called ended may go on.
    for more, ended_ms in (({"dropped": True}, None), ({}, T0)):
        known = KnownLives()
        known.remember({}, [entry(FIRST.listed_ms, T0, **more)], {})
        assert spans(known) == [(FIRST.listed_ms, ended_ms)]
        known.take_in(info(FIRST), T0 + HOUR_MS)
        assert spans(known) == [(FIRST.listed_ms, None)]


@pytest.mark.parametrize("listed_ms", [SECOND.listed_ms, None])
def test_rows_from_before_the_listing_are_asked_about(listed_ms: int | None) -> None:
    """An older version has stored two contracts as one: when the first ended nobody has noted."""
    known = KnownLives()
    oldest_ms = {(PAIR, "1h"): T0 - DAY_MS, (PAIR, "1m"): SECOND.listed_ms}
    known.remember({}, [entry(listed_ms)], oldest_ms)
    found = known.take_in(info(SECOND), SECOND.listed_ms + DAY_MS)
    assert row(found) == (0, None)
    (doubt,) = known.doubts
    known.answered(doubt, False, T0)
    assert row(known.take_in(info(SECOND), SECOND.listed_ms + DAY_MS)) == (SECOND.listed_ms, None)
    assert spans(known) == [(0, T0), (SECOND.listed_ms, None)]


def test_what_goes_on_is_known_though_its_row_is_missing() -> None:
    known = KnownLives()
    known.remember({}, [entry(FIRST.listed_ms)], {})
    found = known.take_in(info(BTC), T0)
    for dropped in (True, False):
        going_on = known.known(T0, dropped=dropped)
        assert [one.pair for one in select_all(found, "USDT", known=going_on).instruments] == [
            BTC.pair,
            PAIR,
        ]
        assert going_on[PAIR].listed_ms == FIRST.listed_ms
    # Announced ends are kept, past ones are ends.
    known.take_in(info(replace(FIRST, delivery_ms=T0 + HOUR_MS)), T0)
    assert known.known(T0, dropped=False)[PAIR].ended_ms == T0 + HOUR_MS
    assert known.known(T0 + HOUR_MS, dropped=False) == {}
    gone = KnownLives()
    gone.remember({}, [entry(FIRST.listed_ms, T0, dropped=True)], {})
    assert gone.known(T0, dropped=False) == {}
    assert list(gone.known(T0, dropped=True)) == [PAIR]


def test_quarterlies_and_what_does_not_trade_yet_begin_no_life() -> None:
    known = KnownLives()
    quarterly = replace(BTC, symbol="BTCUSDT_261225", contract_type="CURRENT_QUARTER")
    coming = replace(FIRST, status="PENDING_TRADING", contract_type="")
    found = known.take_in(info(quarterly, coming), T0)
    assert known.lives == {}
    assert found.instruments == {BTC.pair: quarterly, PAIR: coming}
    known.take_in(info(BTC, FIRST, beside=(quarterly,)), T0)
    assert len(known.lives) == 2
    # With the perpetual's row missing the quarterly stands alone, and is not taken for it.
    found = known.take_in(info(quarterly, FIRST), T0)
    assert found.instruments[BTC.pair] == quarterly
    assert known.lives[BTC.pair][0].symbol == "BTCUSDT"


def test_what_the_settings_have_dropped_goes_on_no_more() -> None:
    """One answer without its row would have it collected again, against the settings."""
    known = KnownLives()
    known.remember({}, [entry(FIRST.listed_ms)], {})
    assert list(known.known(T0, dropped=False)) == [PAIR]
    known.forget([PAIR, "NEVER/USDT:USDT"])
    assert known.known(T0, dropped=True) == {}
    assert spans(known) == [(FIRST.listed_ms, None)]
