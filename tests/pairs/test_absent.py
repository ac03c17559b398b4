"""A pair that the exchange does not know any more is one warning with the command that drops it."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

import pytest
import uvloop
from test_lifecycle import Following, _running

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import (
    NEVER_MS,
    ExchangeInfo,
    Instrument,
    Selection,
    select_named,
)
from marketfeed.journal.documents import change_document
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.absent import ABSENT_PAIRS, AbsentPairs
from marketfeed.pairs.roster import Roster
from marketfeed.schema import DAY_MS, HOUR_MS
from marketfeed.simulator.listings import SetStatus
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.waiting import until

A, B = "A/USDT:USDT", "B/USDT:USDT"
INVALID: Final = b'{"code": -1121, "msg": "Invalid symbol."}'


def contract(pair: str) -> Instrument:
    symbol = pair.partition(":")[0].replace("/", "")
    return Instrument(symbol, pair, "USDT", "TRADING", "PERPETUAL", 1, NEVER_MS)


class Passing(ExchangeClock):
    """A clock on which hours pass at a word."""

    passed_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.passed_ms


class Watched:
    """Absent pairs of A and B, which are both to be collected; `look` is an answer that lists some."""

    def __init__(self, writer: JournalWriter) -> None:
        self.writer = writer
        self.clock = Passing()
        self.turns = Turns(Budget(1_000), self.clock)
        self.start()

    def start(self) -> None:
        self.roster = Roster(Selection((contract(A), contract(B)), {}))
        self.absent = AbsentPairs(self.writer, self.turns, self.roster, self.clock)

    async def look(
        self, *listed: str, odd: dict[str, str] | None = None, wanted: Sequence[str] = (A, B)
    ) -> list[str]:
        info = ExchangeInfo({pair: contract(pair) for pair in listed}, 0, odd or {})
        selection = select_named(info, wanted)
        self.roster.drop_unchosen(selection)
        await self.absent.look(info, selection)
        self.absent.check()
        return self.absent.warnings()

    def refuse(self, symbol: str) -> list[str]:
        """An answer to klines."""
        self.turns.note_symbol(symbol, HTTPStatus.BAD_REQUEST, INVALID)
        self.absent.check()
        return self.absent.warnings()


def run(path: Path, check: Callable[[Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        async with JournalWriter(path) as writer:
            await check(Watched(writer))

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_row_missing_for_a_day_is_said_once_and_until_it_is_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    words = (
        f"{B} has been missing from exchangeInfo for 24 h: `marketfeed pairs --drop {B}` drops it"
    )

    async def check(watched: Watched) -> None:
        assert await watched.look(A, B) == []
        assert await watched.look(A) == []
        watched.clock.passed_ms += DAY_MS - HOUR_MS
        assert await watched.look(A) == []
        watched.clock.passed_ms += HOUR_MS
        assert await watched.look(A) == [words]
        assert await watched.look(A) == [words]
        assert caplog.text.count("knows a pair no more") == caplog.text.count(words) == 1
        # Another start goes on with the day that has passed.
        watched.start()
        await watched.absent.load(Selection((contract(A),), {B: "not listed"}))
        assert watched.absent.warnings() == [words]
        assert await watched.look(A, B) == []
        watched.clock.passed_ms += DAY_MS
        assert await watched.look(A) == []

    run(path, check)
    assert "a pair is known again, or dropped" not in caplog.text  # that log was another start's


def test_a_pair_that_goes_on_without_being_selected_is_watched(path: Path) -> None:
    """With `all` a missing row is in no selection; its warning names what does drop it."""

    async def check(watched: Watched) -> None:
        watched.absent = AbsentPairs(
            watched.writer, watched.turns, watched.roster, watched.clock, can_drop=False
        )
        info = ExchangeInfo({A: contract(A)}, 0, {})
        await watched.absent.look(info, select_named(info, [A]))
        watched.clock.passed_ms += DAY_MS
        await watched.absent.look(info, select_named(info, [A]))
        (text,) = watched.absent.warnings()
        assert text.startswith(f"{B} has been missing")
        assert "--drop" not in text
        assert "a list of the others would drop it" in text

    run(path, check)


def test_it_ends_when_the_pair_is_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check(watched: Watched) -> None:
        await watched.look(A)
        watched.clock.passed_ms += DAY_MS
        assert len(await watched.look(A)) == 1
        assert await watched.look(A, wanted=[A]) == []
        known = await watched.writer.load_document(ABSENT_PAIRS)
        assert known is not None
        assert json.loads(known[0]) == {}

    run(path, check)
    assert caplog.text.count(f"a pair is known again, or dropped pair={B}") == 1


def test_a_row_that_cannot_be_read_is_not_missing(path: Path) -> None:
    async def check(watched: Watched) -> None:
        await watched.look(A, odd={"BUSDT": "no status"})
        watched.clock.passed_ms += 2 * DAY_MS
        assert await watched.look(A, odd={"BUSDT": "no status"}) == []

    run(path, check)


def test_two_answers_in_a_row_that_call_a_symbol_invalid(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(watched: Watched) -> None:
        await watched.look(A, B)
        assert watched.refuse("BUSDT") == []
        watched.turns.note_symbol("BUSDT", HTTPStatus.OK, b"[]")
        assert watched.refuse("BUSDT") == []
        (text,) = watched.refuse("BUSDT")
        assert "(-1121)" in text
        assert f"`marketfeed pairs --drop {B}`" in text
        watched.refuse("BUSDT")
        # Of what is not to be collected nothing is said.
        assert len([watched.refuse("CUSDT") for _ in range(3)][-1]) == 1
        # A row that is there all the while proves nothing; one that comes back does.
        assert len(await watched.look(A, B)) == 1
        assert len(await watched.look(A)) == 1
        assert await watched.look(A, B) == []

    run(path, check)
    assert caplog.text.count("knows a pair no more") == 1


def test_a_collector_warns_of_a_vanished_pair_and_stays_well(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over two starts, a day apart on the exchange; the pair stays until it is dropped while it runs."""
    start_ms = 1_790_006_400_000

    async def run_all() -> None:
        options = {"pairs": 6, "timeframes": ("1m",), "speed": 240.0}
        async with Simulator(SimulatorOptions(start_ms=start_ms, **options)) as sim:  # type: ignore[arg-type]
            gone = sim.market.instruments[3].pair
            async with _running(path, sim, {"pairs": {"top": 6}}) as following:
                await until(lambda: following.delivering)
                sim.change(SetStatus(gone, None))
                asked = sim.rest.requests["exchangeInfo"]
                await until(lambda: sim.rest.requests["exchangeInfo"] >= asked + 3)
                assert following.pairs == 6
                await until(lambda: following.delivering)
        async with Simulator(SimulatorOptions(start_ms=start_ms + 2 * DAY_MS, **options)) as sim:  # type: ignore[arg-type]
            sim.change(SetStatus(gone, None))
            async with _running(path, sim, {"pairs": {"top": 6}}) as following:
                await until(lambda: following.pairs == 6)
                await until(lambda: bool(following.collector.report().warnings))
                await until(lambda: following.delivering)
                (text,) = following.collector.report().warnings
                assert text.startswith(f"{gone} has been missing from exchangeInfo for 4")
                assert text.endswith(f"`marketfeed pairs --drop {gone}` drops it")
                assert following.collector.report().reasons == []
                await until(lambda: "knows a pair no more" in caplog.text)
                await dropped(following, gone)
                await until(lambda: following.pairs == 5)
                assert following.collector.report().refused_pairs == {}

    async def dropped(following: Following, gone: str) -> None:
        name = "chosen_pairs:USDT:6"
        assert change_document(path, name, lambda known: without(known, gone), start_ms)
        await until(lambda: following.collector.report().warnings == [])

    def without(known: bytes | None, gone: str) -> bytes:
        assert known is not None
        return json.dumps([pair for pair in json.loads(known) if pair != gone]).encode()

    uvloop.run(run_all())
    # By -1121 of its candles in the first run, by its row in the second.
    assert 1 <= caplog.text.count("knows a pair no more") <= 2
