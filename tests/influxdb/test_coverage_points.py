"""What is written into `feed_coverage`, and when."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from aiohttp import web
from endpoint import Server, run, stored
from filled import MINUTE, PAIRS, QUICK, T0

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb.coverage_points import CoveragePoints
from marketfeed.influxdb.journal_outbox import KIND, JournalOutbox
from marketfeed.influxdb.line_protocol import coverage_text, escape_tag
from marketfeed.influxdb.pace import Pace
from marketfeed.influxdb.shipper import Shipper
from marketfeed.influxdb.writer import target_of
from marketfeed.journal.batch import Batch, Due
from marketfeed.journal.coverage import Covered, Promise
from marketfeed.journal.journal import Journal
from marketfeed.journal.refused_lines import RefusedLines
from marketfeed.journal.writer import JournalWriter
from marketfeed.records import Candle, Life, lives_text
from marketfeed.settings.model import InfluxSettings
from marketfeed.storage.acknowledged import demand_again
from marketfeed.storage.database import convert
from tests.waiting import until

PAIR = PAIRS[0]
OFTEN = Pace(
    turn_s=0.01,
    forming_every_s=0.02,
    backoff_first_s=0.01,
    backoff_cap_s=0.1,
    parked_s=0.02,
    coverage_every_s=0.02,
)
NOW_MS = schema.floor_to(T0, schema.HOUR_MS) + 10 * MINUTE + 123


def candles(first: int, end: int, pair: str = PAIR) -> Batch:
    opens = (NOW_MS // MINUTE * MINUTE + number * MINUTE for number in range(first, end))
    return Batch(
        candles=[
            Candle(pair, "1m", at, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, True, at + MINUTE)
            for at in opens
        ]
    )


def at(number: int) -> int:
    return NOW_MS // MINUTE * MINUTE + number * MINUTE


def spans(first: int, end: int) -> TimeRange:
    return TimeRange(at(first), at(end))


def told(server: Server, pair: str = PAIR, hour: int = 0) -> tuple[int, int] | None:
    """From and until, in minutes from now on, as the point of an hour has it."""
    series = f"feed_coverage,collector={socket.gethostname()},pair={escape_tag(pair)}"
    time_ms = schema.floor_to(NOW_MS, schema.HOUR_MS) + hour * schema.HOUR_MS
    fields = server.points.get((series, str(time_ms)))
    if fields is None:
        return None
    first, last = fields.split(",")
    assert first.startswith("from_1m=")
    assert last.startswith("until_1m=")
    from_ms, until_ms = (int(text.partition("=")[2].removesuffix("i")) for text in (first, last))
    return (from_ms - at(0)) // MINUTE, (until_ms - at(0)) // MINUTE


def watch(server: Server) -> list[tuple[int, int]]:
    """Look with each request whether what is said is there; what is not is added to what is returned.

    While there is no candle at all the demand to ship all again has yet to be taken up.
    """
    wrong: list[tuple[int, int]] = []

    def look() -> None:
        said = told(server)
        opens = {int(time) for series, time in server.points if series.startswith("ohlcv")}
        if opens and said is not None and not {at(number) for number in range(*said)} <= opens:
            wrong.append(said)

    server.after = look
    return wrong


async def kept(writer: JournalWriter, *pairs: str, minutes: int = 10) -> None:
    made = [Promise(pair, "1m", NOW_MS, minutes * MINUTE) for pair in pairs or (PAIR,)]
    await writer.call(lambda journal: journal.promise(made))


def test_a_line_names_its_series_and_each_timeframe() -> None:
    parts = {"3m": (180_000, 360_000), "1h": (0, 3_600_000)}
    assert coverage_text("BTC/USDT:USDT", "a host", parts, 7_200_000) == (
        r"feed_coverage,collector=a\ host,pair=BTC/USDT:USDT "
        "from_3m=180000i,until_3m=360000i,from_1h=0i,until_1h=3600000i 7200000"
    )


def test_a_line_has_the_lives_of_its_pair_as_text() -> None:
    lives = [
        Life(PAIR, "LITUSDT", 0, 1_738_314_000_000, "onboardDate; deliveryDate"),
        Life(PAIR, "LITUSDT", 1_766_448_000_000, None, "onboardDate"),
    ]
    text = lives_text(lives)
    assert json.loads(text) == [
        [0, 1_738_314_000_000, "LITUSDT"],
        [1_766_448_000_000, None, "LITUSDT"],
    ]
    quoted = text.replace('"', r"\"")
    assert coverage_text("LIT/USDT:USDT", "a", {"3m": (0, 180_000)}, 0, text) == (
        "feed_coverage,collector=a,pair=LIT/USDT:USDT "
        f'from_3m=0i,until_3m=180000i,lives="{quoted}" 0'
    )


def test_lives_are_said_at_once_when_they_change(path: Path) -> None:
    """A point is written over: all that is known of the pair stands in it each time."""
    known: dict[str, list[Life]] = {}

    def covered(end: int) -> Covered:
        return Covered(at(-10), at(-10), at(end), 10 * MINUTE)

    series = {(PAIR, "1m"): covered(0), (PAIR, "3m"): covered(-2)}
    points = CoveragePoints("here", 60.0, lambda: series, lambda: NOW_MS, lambda: known)
    with Journal.open(path) as journal:
        shipped = journal.shipped("here")
        outbox = JournalOutbox(path, "a")
    try:
        said = []
        for now_s in range(3):
            points.look(outbox, shipped)
            said.append(points.lines(float(now_s)))
            points.written(float(now_s))
            known[PAIR] = [Life(PAIR, "BTCUSDT", 1, None, "onboardDate")]
    finally:
        outbox.close()
    assert [len(lines) for lines in said] == [1, 1, 0]
    assert "lives" not in said[0][0]
    (line,) = said[1]
    assert line.count("from_1m=") == line.count("until_3m=") == 1
    assert r'lives="[[1,null,\"BTCUSDT\"]]"' in line


@pytest.mark.parametrize("version", [2, 3])
def test_the_point_of_an_hour_grows_and_follows_what_is_missing(path: Path, version: int) -> None:
    with Journal.open(path) as journal:
        assert journal.version == 3
    if version == 2:
        convert(KIND, path, 2)
    clock = NOW_MS

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        nonlocal clock
        assert writer.version == version
        await kept(writer)
        start = -9
        await until(lambda: told(server) == (start, start))
        await writer.call(lambda journal: journal.write(candles(-3, 0)))
        await until(lambda: told(server) == (-3, 0))
        await writer.call(lambda journal: journal.write(candles(-7, -5)))
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        assert told(server) == (-3, 0)
        await writer.call(lambda journal: journal.write(candles(-5, -3)))
        await until(lambda: told(server) == (-7, 0))
        # The exchange does not have the rest.
        where = spans(start, -7)
        gone = Batch()
        gone.absent += [((PAIR, "1m"), where, NOW_MS), ((PAIR, "1m"), where, NOW_MS + 2 * MINUTE)]
        gone.absent.append(((PAIR, "1m"), where, NOW_MS + 20 * MINUTE))
        await writer.call(lambda journal: journal.write(gone))
        await until(lambda: told(server) == (start, 0))
        # One does not come; then the next one does.
        late = Batch()
        late.expect((PAIR, "1m"), Due(at(1), (spans(0, 1),)))
        await writer.call(lambda journal: journal.write(late))
        await writer.call(lambda journal: journal.write(candles(1, 2)))
        await until(lambda: told(server) == (1, 2))
        clock += schema.HOUR_MS
        await writer.call(lambda journal: journal.write(candles(0, 1)))
        await until(lambda: told(server, hour=1) == (start, 2))

    run(path, scenario, OFTEN, now_ms=lambda: clock)


def test_a_refused_line_ends_an_interval_until_it_is_taken(path: Path) -> None:
    def answer(lines: list[str]) -> tuple[int, bytes, dict[str, str]]:
        if any(line.startswith("ohlcv_1m") and line.endswith(str(at(-4))) for line in lines):
            return 422, b"partial write: field type conflict", {}
        return stored(lines)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        server.answer = answer
        await kept(writer)
        await writer.call(lambda journal: journal.write(candles(-9, 0)))
        await until(lambda: told(server) == (-3, 0))
        assert shipper.shipped_below() == writer.next_seq
        # Another version of it is taken: what was put aside may be of another field.
        with RefusedLines(path, dropping=True) as table:
            table.drop(line.number for line in table.read())
        await until(lambda: told(server) == (-9, 0))

    run(path, scenario, OFTEN, now_ms=lambda: NOW_MS)


def test_when_all_is_shipped_again_nothing_is_said_that_was_not_sent_since(path: Path) -> None:
    few = Pace(max_lines=2, turn_s=0.01, forming_every_s=0.0, coverage_every_s=0.0, parked_s=0.02)

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await kept(writer, minutes=60)
        await writer.call(lambda journal: journal.write(candles(-59, 0)))
        await until(lambda: told(server) == (-59, 0))
        server.points.clear()
        sent = len(server.requests)
        options = {"url": server.url, "org": "fleet", "token": "canary-token"}
        demand_again(KIND, path, target_of(InfluxSettings.model_validate(options)))

        # What a look says that began before the demand goes by the bucket as it was.
        await until(
            lambda: any(
                line.startswith("ohlcv_1m") for lines in server.requests[sent:] for line in lines
            )
        )
        wrong = watch(server)
        await until(lambda: len(server.requests) > sent + 30 and told(server) == (-59, 0))
        assert wrong == []

    run(path, scenario, few, now_ms=lambda: NOW_MS)


def test_growth_alone_waits_for_its_minute_and_a_dropped_pair_is_told_no_more(path: Path) -> None:
    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        await kept(writer, PAIRS[0], PAIRS[1])
        for pair in PAIRS[:2]:
            await writer.call(lambda journal, pair=pair: journal.write(candles(-9, 0, pair)))
        await until(lambda: {told(server, pair) for pair in PAIRS[:2]} == {(-9, 0)})
        await writer.call(lambda journal: journal.release([(PAIRS[1], "1m")]))
        for pair in PAIRS[:2]:
            await writer.call(lambda journal, pair=pair: journal.write(candles(0, 5, pair)))
        await until(lambda: shipper.shipped_below() == writer.next_seq)
        # A hole of one that is collected is told at once, and of one that is not, not at all.
        for pair in PAIRS[:2]:
            await writer.call(lambda journal, pair=pair: journal.write(candles(6, 8, pair)))
        await until(lambda: told(server, PAIRS[0]) == (6, 8))
        assert told(server, PAIRS[1]) == (-9, 0)
        said = [
            line
            for lines in server.requests
            for line in lines
            if line.startswith("feed_coverage") and PAIRS[0] in line
        ]
        assert not any(f"until_1m={at(5)}i" in line for line in said)

    run(path, scenario, QUICK, now_ms=lambda: NOW_MS)


def test_rows_of_a_journal_that_was_replaced_say_nothing_of_the_next_one(path: Path) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> None:
        arrived.set()
        await go_on.wait()

    async def scenario(server: Server, writer: JournalWriter, shipper: Shipper) -> None:
        wrong = watch(server)
        await kept(writer)
        await until(lambda: told(server) == (-9, -9))
        server.before = hold
        await writer.call(lambda journal: journal.write(candles(-9, -5)))
        await arrived.wait()
        await asyncio.to_thread(path.rename, path.with_name("gone.db"))
        await writer.replace()
        # These rows get the numbers that are travelling.
        await kept(writer)
        await writer.call(lambda journal: journal.write(candles(-9, 0)))
        go_on.set()
        await until(lambda: told(server) == (-9, 0))
        assert wrong == []

    run(path, scenario, OFTEN, now_ms=lambda: NOW_MS)
