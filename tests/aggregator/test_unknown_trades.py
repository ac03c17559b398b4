"""Which trades of a bot's are ours, how far back they are asked for, and which the ledger explains."""

import asyncio
import time
from typing import Any

import aiohttp
import msgspec
import pytest
from bot import Behaviour, CountingBot
from hypothesis import given
from hypothesis import strategies as st

from marketfeed.aggregator import unknown_trades as unknown
from marketfeed.aggregator.ensemble_tag import ensemble_side
from marketfeed.aggregator.freqtrade_bot import CLOSED_TRADES, Bot, Trade
from marketfeed.aggregator.ledger_tables import Forward, State
from marketfeed.aggregator.unknown_trades import unknown_trades
from marketfeed.schema import DAY_MS
from marketfeed.service.freqtrade_api import BotError
from marketfeed.settings.aggregator import BotSettings

T0 = 1_800_000_000_000
NOW = T0 + 100_000
TAG = "long ensemble 3/5 conf=0.82 from=79"


# --- the tag ----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["long", "short"]),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.floats(0, 1),
    st.from_regex(r"[A-Za-z0-9_.-]{1,32}", fullmatch=True),
)
def test_a_tag_of_ours_is_known_by_its_side(
    side: str, votes: int, of: int, confidence: float, feeder: str
) -> None:
    tag = f"{side} ensemble {votes}/{of} conf={confidence:.2f} from={feeder}"
    assert ensemble_side(tag) == side


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "force_entry",
        "long from 75b conf=0.89 (DQ: profit=3.05%)",
        "my long ensemble 3/5",
        "long ensemble",
        "long ensemble 3/5conf",
        "LONG ensemble 3/5",
        "long ensemble ٣/٥",
    ],
)
def test_another_s_tag_is_not(tag: str) -> None:
    assert ensemble_side(tag) is None


# --- what the ledger explains -----------------------------------------------------------------------------


def trade(trade_id: int = 7, opened_ms: int = T0 + 500, *, added: bool = False) -> Trade:
    return Trade(trade_id, "BTC/USDT:USDT", "long", TAG, opened_ms, added)


def forward(
    state: State,
    trade_id: int | None = None,
    sent_ms: int | None = T0,
    answered_ms: int | None = T0 + 1_000,
) -> Forward:
    values: dict[str, object] = {
        "window": 1,
        "bot": "long",
        "pair": "BTC/USDT:USDT",
        "side": "long",
        "tag": TAG,
        "decided_ms": T0,
        "state": state,
        "sent_ms": sent_ms,
        "answered_ms": answered_ms if state in {"accepted", "refused", "found"} else None,
        "trade_id": trade_id,
        "answer": "",
    }
    rest = {name: None for name in Forward.__struct_fields__ if name not in values}
    return Forward(**values, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "explained"),
    [
        (forward("accepted", 7), True),
        (forward("found", 7), True),
        # A clock was set in between.
        (forward("accepted", 7, sent_ms=T0 + 3_600_000), True),
        (forward("accepted", 7, sent_ms=T0 - 3_600_000), True),
        # Of a database that was begun anew.
        (forward("accepted", 7, sent_ms=T0 - DAY_MS, answered_ms=T0 - DAY_MS), False),
        # An answer may name another trade than the one that it opened.
        (forward("accepted", 3), True),
        (forward("accepted", 3, sent_ms=T0 - 60_000, answered_ms=T0 - 59_000), False),
        (forward("sending"), True),
        (forward("unknown"), True),
        (forward("lost"), True),
        (forward("unknown", sent_ms=NOW + 5), True),
        (forward("unknown", sent_ms=T0 + 60_000), False),
        (forward("refused"), False),
        (forward("queued", sent_ms=None), False),
        (forward("expired", sent_ms=None), False),
        (msgspec.structs.replace(forward("accepted", 7), pair="ETH/USDT:USDT"), False),
        (msgspec.structs.replace(forward("accepted", 7), tag="long ensemble 4/5"), False),
    ],
)
def test_a_trade_is_known_by_its_order(known: Forward, explained: bool) -> None:
    assert unknown_trades([trade()], [known], NOW) == ([] if explained else [trade()])


def test_an_order_explains_one_trade() -> None:
    """The one that it names, else the nearest: of two, the other one is nobody's."""
    twice = [trade(7, T0 + 500), trade(8, T0 + 600)]
    assert unknown_trades(twice, [forward("accepted", 8)], NOW) == [twice[0]]
    assert len(unknown_trades(twice, [forward("unknown")], NOW)) == 1
    both = [forward("unknown"), forward("accepted", 7)]
    assert unknown_trades(twice, both, NOW) == []


def test_what_was_added_to_a_trade_is_an_order_of_its_own() -> None:
    first, added = trade(7, T0 + 500), trade(7, T0 + 50_500, added=True)
    one, two = forward("accepted", 7), forward("accepted", 7, T0 + 50_000, T0 + 51_000)
    assert unknown_trades([first, added], [one, two], NOW) == []
    assert unknown_trades([first, added], [one], NOW) == [added]
    assert unknown_trades([first, added], [two], NOW) == [first]


def test_only_what_is_of_one_pair_and_tag_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once on the event loop, thousands of each: not every order with every trade."""
    compared: list[int] = []
    really = unknown._may_have_opened

    def counted(*which: Any) -> bool:
        compared.append(1)
        return really(*which)

    monkeypatch.setattr(unknown, "_may_have_opened", counted)
    pairs = [f"P{index}/USDT:USDT" for index in range(500)]
    sent = [
        msgspec.structs.replace(forward("unknown"), pair=pair, window=number)
        for number, pair in enumerate(pairs * 4)
    ]
    trades = [
        msgspec.structs.replace(trade(number), pair=pair) for number, pair in enumerate(pairs * 5)
    ]
    assert unknown_trades(trades, sent, NOW) == trades[2_000:]
    assert len(compared) == 500 * 4 * 5


@pytest.mark.parametrize("time_ms", [T0 * 1_000, T0 * 10**6, 10**30, 0])
def test_a_time_that_no_calendar_has_hides_no_trade(time_ms: int) -> None:
    """As of a bot that counts in microseconds: it counts as now, and not as never."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            one = bot.add("BTC/USDT:USDT", TAG, 10)
            bot.add("ETH/USDT:USDT", TAG, 10)
            one["open_timestamp"] = time_ms
            found = {it.pair: it.opened_ms for it in await since(bot, 300)}
            assert len(found) == 2
            assert 0 <= found["BTC/USDT:USDT"] <= 253_402_300_799_999
            assert (found["BTC/USDT:USDT"] > now_ms()) == bool(time_ms)

    asyncio.run(scenario())


# --- how far back a bot is asked --------------------------------------------------------------------------


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def since(counting: CountingBot, ago_s: float) -> list[Trade]:
    given = BotSettings(url=counting.url, password="invented-b0t-password")  # noqa: S106
    async with aiohttp.ClientSession() as session:
        bot = Bot(given, session)
        return await bot.trades_since(now_ms() - round(ago_s * 1000), now_ms)


def test_closed_trades_are_asked_for_until_older_ones_come() -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            for index in range(1_000):
                # The newest closed last; the odd ones long ago.
                ago_s = 400.0 if index < 700 else 100.0
                one = bot.add(f"A{index}/USDT:USDT", TAG, ago_s, closed=True)
                one["close_timestamp"] = now_ms() - (380_000 if index < 700 else 1_000) + index
            bot.add("OPEN/USDT:USDT", TAG, 9_999)
            found = await since(bot, 120)
            pairs = {it.pair for it in found}
            assert {f"A{index}/USDT:USDT" for index in range(700, 1_000)} <= pairs
            assert "OPEN/USDT:USDT" in pairs
            # And no further than one page of older ones.
            assert bot.requests["trades"] <= 300 // (CLOSED_TRADES - 10) + 2
            assert len({it.trade_id for it in found}) == len(found)
            everything = await since(bot, 500)
            assert len(everything) == 1_001

    asyncio.run(scenario())


def test_a_trade_that_closed_late_is_found_behind_many_short_ones() -> None:
    """By when they closed, and not by id: the one that opened first may have closed last."""

    async def scenario() -> None:
        async with CountingBot() as bot:
            ours = bot.add("BTC/USDT:USDT", TAG, 200)
            for index in range(250):
                bot.add(f"A{index}/USDT:USDT", "other", 100, closed=True)
            bot.close_trades()
            found = await since(bot, 300)
            assert [it.trade_id for it in found if it.tag == TAG] == [ours["trade_id"]]

    asyncio.run(scenario())


def test_a_bot_that_gives_the_same_page_again_has_not_answered() -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            bot.ignores_offset = True
            for index in range(250):
                bot.add(f"A{index}/USDT:USDT", TAG, 1, closed=True)
            with pytest.raises(BotError, match="the same trades again"):
                await since(bot, 300)

    asyncio.run(scenario())


def test_a_bot_that_knows_no_other_order_than_by_id_is_asked_for_all() -> None:
    async def scenario() -> None:
        async with CountingBot() as bot:
            bot.ignores_order = True
            for index in range(250):
                one = bot.add(f"A{index}/USDT:USDT", TAG, 9_000, closed=True)
                one["close_timestamp"] = now_ms() - 8_000_000 + index
            bot.add("NEW/USDT:USDT", TAG, 10, closed=True)
            assert "NEW/USDT:USDT" in {it.pair for it in await since(bot, 300)}

    asyncio.run(scenario())


@pytest.mark.parametrize("behaviour", ["unauthorized", "nested"])
def test_what_is_no_answer_is_none(behaviour: Behaviour) -> None:
    async def scenario() -> None:
        async with CountingBot(behaviour, asked=True) as bot:
            with pytest.raises(BotError):
                await since(bot, 300)

    asyncio.run(scenario())
