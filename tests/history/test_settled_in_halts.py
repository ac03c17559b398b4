"""Settlements of contracts that have halted: an answer for all contracts may be of those that trade alone."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from marketfeed.binance.symbols import ExchangeInfo
from marketfeed.history.awaited import APART_EVERY_S, Apart
from marketfeed.history.funding_plan import untold
from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.records import CatalogEntry
from marketfeed.schema import DAY_MS, HOUR_MS, MINUTE_MS
from reader import MarketReader
from tests.history.rates_exchange import T0, Line, instrument, run
from tests.waiting import until

OURS, OTHER = instrument(0), instrument(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    batch = Batch()
    batch.extend(
        CatalogEntry(one.pair, one.symbol, ("1m",), T0 - DAY_MS, None, None, T0 - DAY_MS)
        for one in (OURS, OTHER)
    )
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.write(batch)
    return tmp_path / "journal.db"


def at(hour: float) -> int:
    return T0 + round(hour * 60) * MINUTE_MS


def row(symbol: str, hour: float, kind: str = "Regular") -> dict[str, Any]:
    return {
        "symbol": symbol,
        "fundingTime": at(hour) + 3,
        "fundingRate": "0.00010000",
        "markPrice": "10.0",
        "rateType": kind,
    }


def stored(path: Path, pair: str) -> list[tuple[float, str]]:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(
            """SELECT time, kind FROM funding_settled JOIN pair ON pair.id = pair_id
               WHERE pair = ? ORDER BY time""",
            (pair,),
        ).fetchall()
    return [((ms - T0) / HOUR_MS, kind) for ms, kind in found]


def settled_to(path: Path, pair: str) -> int:
    with MarketReader.connect(f"sqlite:///{path}") as reader:
        return reader.get_funding_history(pair).attrs["settled_to"] or 0


def test_a_special_one_within_a_halt_is_not_passed_over(path: Path) -> None:
    async def check(line: Line) -> None:
        line.rates.rows = [
            row(OURS.symbol, 1.1, "Special"),
            row(OURS.symbol, 2.5),
            *(row(OTHER.symbol, hour) for hour in (0.0, 1.0, 1.5, 2.0, 2.5)),
        ]
        line.announce(at(2.5), OURS)
        line.announce(at(1.0), OTHER)
        await until(lambda: not line.settled_rates.report().history_pairs)
        line.rates.halted = {OURS.symbol}
        for hour in (1.0, 1.5, 2.0):
            await until(lambda: (hour, "Regular") in stored(path, OTHER.pair))  # noqa: B023
            line.announce(at(hour + 0.5), OTHER)
        # Asked after all of that was published.
        await until(lambda: settled_to(path, OTHER.pair) > at(1.5))
        # It is asked for by itself, while it has halted; what is complete has the special one.
        await until(lambda: settled_to(path, OURS.pair) > at(1.1))
        assert stored(path, OURS.pair) == [(1.1, "Special")]
        assert OURS.symbol in line.rates.asked
        line.rates.halted = set()
        await until(lambda: (2.5, "Regular") in stored(path, OURS.pair))
        assert stored(path, OURS.pair) == [(1.1, "Special"), (2.5, "Regular")]

    run(path, check, collected=2, listed=2, days=1, now_ms=at(0.9), speed=600.0)


def test_the_history_of_one_that_has_halted_is_asked_for_by_itself(path: Path) -> None:
    async def check(line: Line) -> None:
        line.rates.halted = {OURS.symbol}
        await until(lambda: not line.settled_rates.report().history_pairs)
        await until(lambda: len(stored(path, OURS.pair)) >= 20)

    rates = run(path, check, collected=20, listed=20, days=7)
    assert OURS.symbol in rates.asked
    assert None in rates.asked


# --- whom, and how often ------------------------------------------------------------------------------


def test_weeks_of_halts_are_a_question_in_ten_minutes_each_and_one_in_a_look() -> None:
    apart, asked = Apart(), list[str]()
    pairs = [f"S{n}/USDT:USDT" for n in range(164)]
    for now_s in range(3 * int(APART_EVERY_S)):
        apart.join(pairs, now_s)
        if (pair := apart.next(now_s)) is not None:
            apart.ask_again(pair, now_s)
            asked.append(pair)
    assert asked == pairs * 3
    apart.leave(pairs[0])
    assert pairs[0] not in apart


def test_an_answer_for_all_is_of_those_that_trade_by_a_list_of_now() -> None:
    halted = msgspec.structs.replace(OTHER, status="TRADING_HALT")
    pairs = {OURS.symbol: OURS.pair, OTHER.symbol: OTHER.pair}
    info = ExchangeInfo({OURS.pair: OURS, OTHER.pair: halted}, 0, at_ms=T0)
    assert untold(info, pairs, T0 + 10 * MINUTE_MS) == {OTHER.pair}
    assert untold(info, pairs, T0 + 10 * MINUTE_MS + 1) == {OURS.pair, OTHER.pair}
    # A row that is missing says nothing.
    assert untold(ExchangeInfo({OURS.pair: OURS}, 0), pairs, T0) == {OTHER.pair}
