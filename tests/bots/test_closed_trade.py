"""A bot's JSON becomes a record, or a sentence that names what is wrong with it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from marketfeed.bots.closed_trade import (
    Exits,
    RefusedTradeError,
    Votes,
    closed_trade,
    exits_in,
    votes_in,
)
from tests.bots.fleet import START_MS, trade

NOW_MS = START_MS + 86_400_000
ZONE_MS = 7 * 3_600_000


def test_every_field_of_a_short_trade() -> None:
    row = trade(
        7,
        START_MS,
        is_short=True,
        leverage=5.0,
        open_rate=100.0,
        close_rate=98.0,
        close_profit=0.095,
        close_profit_pct=9.5,
        close_profit_abs=4.75,
        min_rate=97.0,
        max_rate=101.0,
        funding_fees=-0.5,
        enter_tag="short ensemble 4/5 conf=0.82 from=79",
    )
    found = closed_trade(row, NOW_MS)
    assert found.key == (START_MS - 9_540_000, 7)
    assert (found.side, found.leverage, found.close_profit) == ("short", 5.0, 0.095)
    assert found.position_profit == pytest.approx(0.019)
    assert (found.mae, found.mfe) == (pytest.approx(-0.01), pytest.approx(0.03))
    assert (found.fees, found.funding_fees, found.duration_s) == (0.15, -0.5, 9540.0)
    assert (found.votes, found.of, found.confidence, found.primary) == (4, 5, 0.82, "79")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"close_profit": math.nan}, "close_profit: found nan, expected a finite number"),
        ({"close_profit": None}, "close_profit: found nothing"),
        ({"open_rate": 0.0}, "open_rate: found 0.0, expected a price above 0"),
        ({"trade_id": "7"}, "trade_id: found '7'"),
        ({"pair": "BTCUSDT"}, "pair: found 'BTCUSDT'"),
        ({"leverage": 0}, "leverage: found 0.0"),
        ({"is_open": True}, "is_open: found True"),
        ({"close_timestamp": START_MS - 99_000_000}, "close_timestamp: found"),
        ({"close_timestamp": NOW_MS + ZONE_MS}, "it lies 7.0 h ahead, as a local time without"),
        ({"close_date": "2025-12-01 07:00:00"}, "they are 7.0 h apart"),
        ({"close_date": "1.12.2025"}, "expected a date such as"),
        ({"open_timestamp": 1.5}, "open_timestamp: found 1.5, expected ms since the epoch"),
        ({"enter_tag": 5}, "enter_tag: found 5, expected a text"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedTradeError) as caught:
        closed_trade(trade(7, START_MS) | changes, NOW_MS)
    assert words in str(caught.value)


RATES = {"is_short": False, "leverage": 3.0, "open_rate": 100.0, "close_rate": 101.0}


@pytest.mark.parametrize("said", [2.7, None])
def test_percent_is_no_fraction(said: float | None) -> None:
    row = trade(7, START_MS, **RATES, close_profit=2.7, close_profit_pct=said)
    with pytest.raises(RefusedTradeError, match="a fraction"):
        closed_trade(row, NOW_MS)
    row = trade(7, START_MS, **RATES, close_profit=0.027, close_profit_pct=said)
    assert closed_trade(row, NOW_MS).close_profit == 0.027


def test_a_partial_exit_at_another_rate_is_no_percent() -> None:
    # 30 % was realised before, the rest at about the opening rate.
    row = trade(
        7, START_MS, **RATES | {"close_rate": 102.0}, close_profit=0.9, close_profit_pct=90.0
    )
    assert closed_trade(row, NOW_MS).position_profit == pytest.approx(0.3)


def test_the_dates_of_freqtrade_are_utc() -> None:
    row = trade(7, START_MS + 400, close_date="2025-12-01 00:00:00")
    assert closed_trade(row, NOW_MS).closed_ms == START_MS + 400


@pytest.mark.parametrize(
    ("tag", "votes"),
    [
        ("long ensemble 3/5 conf=0.82 from=79", Votes(3.0, 5.0, 0.82, "79")),
        ("long ensemble 3/5", Votes(3.0, 5.0)),
        ("long from 75b conf=0.89", Votes()),
        ("", Votes()),
    ],
)
def test_what_a_tag_says(tag: str, votes: Votes) -> None:
    assert votes_in(tag) == votes


def test_exits_of_custom_data() -> None:
    def answer(value: object) -> list[dict[str, Any]]:
        other = {"key": "peak", "value": 1}
        return [
            {"trade_id": 7, "custom_data": [other, {"key": "marketfeed_exits", "value": value}]}
        ]

    exits = {"stop": -0.0148, "target": 0.01, "source": "bin", "max_hold_s": 1}
    assert exits_in(answer(exits), 7) == Exits(-0.0148, 0.01, "bin")
    assert exits_in(answer('{"stop": -0.0148}'), 7) == Exits(-0.0148)
    assert exits_in(answer(exits), 8) == exits_in(None, 7) == Exits()
    with pytest.raises(RefusedTradeError, match="no percent"):
        exits_in(answer({"stop": -1.48}), 7)


def test_what_a_real_freqtrade_answers() -> None:
    file = Path(__file__).parents[1] / "data" / "freqtrade_2026.9_closed_trades.json"
    answer = json.loads(file.read_text())
    rows = answer["trades"]["trades"]
    plain, short, long = (closed_trade(row, 1_796_200_000_000) for row in rows)
    assert (long.side, long.leverage, long.exit_reason) == ("long", 3.0, "roi_optuna")
    # 1.1 % by its rates, less both fees: the position's, and three times that with leverage.
    assert long.position_profit == pytest.approx(0.011 - 0.0010, abs=2e-5)
    assert short.position_profit == pytest.approx(-0.01512 - 0.0010, abs=2e-5)
    assert (short.votes, short.of, short.confidence, short.primary) == (4, 5, 0.91, "120")
    assert (plain.enter_tag, plain.votes, plain.duration_s) == ("", None, 9553.0)
    assert exits_in(answer["custom_data"], 1) == Exits(-0.0148, 0.01, "bin")
