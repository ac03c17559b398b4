"""A start of a ledger that is held: what waits in it is never sent; a clock that was set holds longer."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from bot import CountingBot
from decided import decide
from running import PAIR, rows, running, settings, states

from marketfeed.aggregator.freqtrade_bot import Trade
from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_beginning import CLOCK_SET, OTHER
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.ledger_thread import LedgerThread
from marketfeed.aggregator.metrics import AggregatorCounters
from marketfeed.aggregator.signals import Side
from marketfeed.aggregator.start import LACKS, Spans, Start
from marketfeed.aggregator.timing import Pace
from marketfeed.clock import HostClock
from tests.waiting import until

T0 = 1_795_000_000_000
SPANS = Spans(quiet_ms=120_000, clock_quiet_ms=300_000, asked_ms=300_000)
PACE = Pace(look_s=0.01)
NOT_SENT = f"not sent before it expired: {LACKS}"


class Answering:
    """A bot that has these trades, and what was asked of it."""

    def __init__(self, *trades: Trade) -> None:
        self.trades = list(trades)
        self.asked = 0

    async def trades_since(self, _since_ms: int, _now_ms: Callable[[], int]) -> list[Trade]:
        self.asked += 1
        return self.trades


class Held:
    """Who decides, as far as a start tells it anything."""

    def __init__(self) -> None:
        self.trades: list[tuple[str, Side, int]] = []
        self.until_ms = 0
        self.why = ""

    def merge_trades(self, trades: Iterable[tuple[str, Side, int]]) -> None:
        self.trades += trades

    def hold(self, until_ms: int, why: str) -> None:
        self.until_ms, self.why = until_ms, why


class Begun:
    """A start on the ledger at `path` whose clock a test sets."""

    def __init__(self, path: Path, *trades: Trade) -> None:
        self.ledger = LedgerThread(path)
        self.bot = Answering(*trades)
        self.held = Held()
        self.heard: list[Forward] = []
        self.counters = AggregatorCounters()
        self.now_ms = T0 + 400_000
        self.start = Start(
            {"long": self.bot},
            self.ledger,
            self.held,
            lambda: self.now_ms,
            SPANS,
            PACE,
            self.counters,
            self.heard.append,
        )

    async def forwards(self) -> list[Forward]:
        every = ("queued", "sending", "unknown", "accepted", "refused", "expired", "found", "lost")
        return await self.ledger.call(lambda ledger: ledger.forwards(every))


def queue(path: Path, *, held: str) -> None:
    """A ledger in which one waits for long, and which is held."""
    with Ledger.open(path) as ledger:
        ledger.hold(held)
        waits = msgspec.structs.replace(
            decide(1, PAIR), decided_ms=T0, opened_ms=T0 - 60_000, expires_ms=T0 + 900_000
        )
        ledger.record([], [waits], T0)
        # Of votes that retention has deleted.
        ledger.db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('signal', 5)")
        ledger.db.commit()


def refuse_steps(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON forward BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    db.close()


@pytest.mark.parametrize("why", [OTHER, CLOCK_SET, "a fresh ledger"])
def test_what_waits_in_a_held_ledger_is_never_sent(tmp_path: Path, why: str) -> None:
    """It was sent after the copy was made, and its trade has closed: no bot names it any more."""
    path = tmp_path / "ledger.db"
    queue(path, held=why)

    async def scenario() -> None:
        begun = Begun(path)
        async with begun.ledger:
            begun.start.begin()
            (waits,) = await begun.forwards()
            assert begun.start.forbids(waits) == LACKS
            asking = asyncio.create_task(begun.start.run("long", lambda: None))
            await until(lambda: begun.heard, "its end")
            (ended,) = await begun.forwards()
            assert (ended.state, ended.answer) == ("expired", NOT_SENT)
            assert begun.heard == [ended]
            assert begun.counters.forwards["long", "expired"] == 1
            begun.now_ms += SPANS.clock_quiet_ms + 1
            await asyncio.wait_for(asking, 180)
            assert begun.start.waits("long") == ""
            assert rows(tmp_path, "SELECT held FROM beginning") == [("",)]

    asyncio.run(scenario())


def test_a_held_ledger_is_not_released_before_that_has_been_noted(tmp_path: Path) -> None:
    """Else the next start would send it."""
    path = tmp_path / "ledger.db"
    queue(path, held=OTHER)
    refuse_steps(path)

    async def scenario() -> None:
        begun = Begun(path)
        async with begun.ledger:
            begun.start.begin()
            asking = asyncio.create_task(begun.start.run("long", lambda: None))
            await until(lambda: begun.bot.asked == 1, "the question")
            # Behind the ledger's part of the answer: the wait counts from when that is taken in.
            await begun.ledger.call(lambda ledger: ledger.next_seq)
            begun.now_ms += SPANS.quiet_ms + 1
            await until(lambda: begun.bot.asked == 2, "the second question")
            for _ in range(50):
                # Each behind whatever it would have noted by then.
                await begun.ledger.call(lambda ledger: ledger.next_seq)
                assert rows(tmp_path, "SELECT held FROM beginning") == [(OTHER,)]
            await begun.ledger.call(lambda ledger: ledger.db.execute("DROP TRIGGER full") and None)
            await asyncio.wait_for(asking, 180)
            ((state,),) = rows(tmp_path, "SELECT state FROM forward")
            assert state == "expired"
            assert rows(tmp_path, "SELECT held FROM beginning") == [("",)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("why", "for_ms"),
    [
        (OTHER, SPANS.quiet_ms),
        (CLOCK_SET, SPANS.clock_quiet_ms),
        (f"{OTHER}, and {CLOCK_SET}", SPANS.clock_quiet_ms),
    ],
)
def test_a_clock_that_was_set_holds_for_a_cool_down(tmp_path: Path, why: str, for_ms: int) -> None:
    path = tmp_path / "ledger.db"
    queue(path, held=why)

    async def scenario() -> None:
        begun = Begun(path)
        async with begun.ledger:
            begun.start.begin()
            assert (begun.held.until_ms, begun.held.why) == (begun.now_ms + for_ms, why)
            (reason,) = begun.start.reasons()
            assert reason.text == f"{why}: nothing is forwarded for another {for_ms // 1000} s"

    asyncio.run(scenario())


@pytest.mark.parametrize("by_s", [-3_600, 3_600])
def test_a_clock_that_is_set_between_two_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_s: int
) -> None:
    """Back or forward: what was sent before is neither repeated nor contradicted."""

    async def scenario() -> None:
        async with CountingBot() as long_bot, CountingBot() as short_bot:
            bots = {"long": long_bot.url, "short": short_bot.url}
            rules = {"window_s": 1, "expire_s": 1, "cooldown_s": 4, "unconfirmed_s": 0.8}
            given = settings(tmp_path, bots, min_agreements=1, **rules)
            async with running(given) as aggregator:
                await aggregator.post("73", 0.9)
                await until(lambda: states(tmp_path) == ["accepted"], "the order")
            monkeypatch.setattr(
                "marketfeed.aggregator.aggregator.HostClock",
                lambda: HostClock((time.time() + by_s) * 1000.0),
            )
            async with running(given) as aggregator:
                assert any(
                    it.startswith(f"{CLOCK_SET}: nothing is forwarded for another ")
                    for it in aggregator.aggregator.reasons()
                )
                await aggregator.post("74", 0.9)
                await aggregator.post("120", 0.9, side="short")
                await until(lambda: len(rows(tmp_path, "SELECT window FROM decision")) == 3, "both")
                await until(
                    lambda: not any(CLOCK_SET in it for it in aggregator.aggregator.reasons()),
                    "the end of it",
                )
                await aggregator.post("75", 0.9)
                await until(lambda: states(tmp_path) == ["accepted"] * 2, "the next order")
            assert len(long_bot.posts) == 2
            assert short_bot.posts == []
            # The clock is known now.
            async with running(given) as aggregator:
                assert not any(CLOCK_SET in it for it in aggregator.aggregator.reasons())

    asyncio.run(scenario())


# --- odd answers of one bot ----------------------------------------------------------------------------


@pytest.mark.parametrize("opened_ms", [T0 * 1_000, 10**18, -(10**18)])
def test_an_odd_time_ends_nothing(tmp_path: Path, opened_ms: int) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    odd = Trade(1, PAIR, "long", "long ensemble 3/5 conf=0.82 from=79", opened_ms)

    async def scenario() -> None:
        begun = Begun(path, odd)
        async with begun.ledger:
            await begun.ledger.call(Ledger.release)
            begun.ledger.held = ""
            begun.start.begin()
            await asyncio.wait_for(_until_asked(begun), 180)
            if opened_ms > 0:
                assert begun.held.trades == [(PAIR, "long", opened_ms)]
                assert any(f"opened at {opened_ms}" in it.text for it in begun.start.reasons())

    asyncio.run(scenario())


async def _until_asked(begun: Begun) -> None:
    asking = asyncio.create_task(begun.start.run("long", lambda: None))
    while not begun.bot.asked or begun.start.waits("long").startswith("it has to be asked"):
        assert not asking.done() or asking.exception() is None
        await asyncio.sleep(0)
    asking.cancel()


def test_what_cannot_be_taken_in_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent to that bot meanwhile, and nothing ends."""
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    found = Trade(1, PAIR, "long", "long ensemble 3/5 conf=0.82 from=79", T0 + 300_000)

    async def scenario() -> None:
        begun = Begun(path, found)
        async with begun.ledger:
            begun.start.begin()
            with monkeypatch.context() as patch:

                def refuse(_trades: object) -> None:
                    raise RuntimeError("odd")

                patch.setattr(begun.held, "merge_trades", refuse)
                asking = asyncio.create_task(begun.start.run("long", lambda: None))
                await until(lambda: begun.bot.asked >= 3, "three questions")
                begun.now_ms += SPANS.quiet_ms + 1
                assert "it has to be asked first" in begun.start.waits("long")
                assert not asking.done()
            await until(lambda: begun.held.trades, "the trade")
            begun.now_ms += SPANS.quiet_ms + 1
            await asyncio.wait_for(asking, 180)
            assert begun.held.trades == [(PAIR, "long", T0 + 300_000)]
            assert begun.start.waits("long") == ""

    asyncio.run(scenario())
