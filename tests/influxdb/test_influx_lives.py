"""A name that was used again: a bucket answers as a journal does, whichever collectors tell of it."""

import asyncio
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from both import Both
from covered import cover
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from influxd import Influxd
from lived import lives_line, made, tell
from shipped import shipping, v1_target
from shipped_coverage import PACE
from stored import D1, H1, M15, OTHER, PAIR, START_MS, candle, entry, store, url
from test_influx_random import Question, answer, same

from marketfeed import schema
from marketfeed.records import FundingRate, FundingSettled, MarkPrice
from reader import GapError, MarketReader, StoreUnavailableError
from reader.feeder import FUNDING_RATE, FUTURES, MARK, Download, Feeder
from reader.stores import influx_catalog

_names = (f"lives {number}" for number in itertools.count())
SLOTS = 60
H4 = 4 * H1
NOW_MS = START_MS + SLOTS * H4
Life = tuple[int, int | None]


@pytest.fixture
def both(influxd: Influxd, database: str, tmp_path: Path) -> Both:
    return Both(influxd, database, tmp_path / "journal.db")


@pytest.fixture
def opened(both: Both, clock) -> Iterator[Callable[[], MarketReader]]:
    """Open another reader of the bucket."""
    readers: list[MarketReader] = []

    def made() -> MarketReader:
        readers.append(
            MarketReader.connect(both.influxd.url, bucket=both.database, now_ms=clock.now_ms)
        )
        return readers[-1]

    yield made
    for reader in readers:
        reader.close()


def say(both: Both, lives: list[Life], told_ms: int, collector: str = "host_1") -> None:
    both.influxd.write(both.database, [lives_line(PAIR, lives, told_ms, collector)])


# --- both stores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What is stored of one pair, and what is told of it."""

    opens: list[int]
    lives: list[Life]

    def owner(self, open_ms: int) -> int | None:
        """Which life a row is of, slot by slot; -1 of what lies before all of them."""
        if not self.lives:
            return 0
        for number, (listed_ms, ended_ms) in enumerate(self.lives):
            end_ms = 2**60 if ended_ms is None else ended_ms
            if listed_ms // H4 <= open_ms // H4 < end_ms // H4:
                return number
        return -1 if open_ms // H4 < self.lives[0][0] // H4 else None

    def asked(self, until_ms: int | None, length_ms: int) -> int:
        """Which life is asked for."""
        if not self.lives:
            return 0
        numbers = [
            number
            for number, (listed_ms, _) in enumerate(self.lives)
            if until_ms is None or listed_ms // length_ms * length_ms < until_ms
        ]
        return max(numbers, default=-1)

    def candles(self, asked: dict[str, int | None], length_ms: int) -> tuple[list[int], bool]:
        """The candles of an answer of what is asked, and whether rows of another life were asked for."""
        since_ms, until_ms, limit = asked["since"] or 0, asked["until"], asked["limit"]
        life = self.asked(until_ms, length_ms)
        mine = {ms for ms in self.opens if self.owner(ms) == life}
        begin_ms = self.lives[life][0] // H4 * H4 if self.lives and life >= 0 else 0
        found = []
        for open_ms in sorted({ms // length_ms * length_ms for ms in mine}):
            parts = range(max(open_ms, begin_ms), open_ms + length_ms, H4)
            in_range = open_ms >= since_ms and (until_ms is None or open_ms < until_ms)
            if in_range and all(part in mine for part in parts):
                found.append(open_ms)
        if limit is None and asked["since"] is None:
            limit = 500
        is_cut = limit is not None and len(found) >= limit
        from_ms = -(-since_ms // length_ms) * length_ms
        older = [ms for ms in self.opens if from_ms <= ms < begin_ms]
        return found[-limit:] if limit else found, bool(older) and not is_cut


edges = st.integers(-8, SLOTS * 3 + 4).map(lambda n: START_MS + n * H4 // 3)


@st.composite
def models(draw: st.DrawFn) -> Model:
    chosen = sorted(draw(st.sets(edges, max_size=5)))
    # Of an odd number the last one has no end. Two listings of one day are one.
    days = {ms // D1 for ms in chosen}
    chosen = chosen if len(days) == len(chosen) else chosen[:1]
    lives = list(itertools.zip_longest(chosen[::2], chosen[1::2]))
    text = draw(st.text("......?", min_size=1, max_size=SLOTS))
    opens = [START_MS + n * H4 for n, kind in enumerate(text) if kind == "."]
    return Model(opens, lives)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    timeframe = draw(st.sampled_from(["4h", "4h", "8h", "12h", "1d"]))
    now_ms = NOW_MS + draw(st.integers(-9, 9)) * H4 + draw(st.sampled_from([0, 20_000]))
    bound = st.none() | st.integers(-4, SLOTS + 4).map(lambda n: START_MS + n * H4)
    count = st.integers(1, SLOTS + 2)
    match draw(st.sampled_from(["get_ohlcv", "get_ohlcv", "get_ohlcv", "ready", "wait", "newest"])):
        case "ready":
            return Question(now_ms, "ready", (PAIR, timeframe, draw(count)), {})
        case "wait":
            length_ms = schema.TIMEFRAMES_MS[timeframe]
            open_ms = START_MS + draw(st.integers(-1, SLOTS)) * length_ms
            return Question(now_ms, "wait_closed", (timeframe, open_ms, 0), {})
        case "newest":
            return Question(now_ms, "newest", (timeframe,), {})
    since, until = draw(bound), draw(bound)
    if since is not None and until is not None and since >= until:
        since = None
    asked = {
        "limit": draw(st.none() | count),
        "since": since,
        "until": until,
        "include_forming": draw(st.booleans()),
        "strict": draw(st.sampled_from([False, False, True])),
        "max_age_s": draw(st.sampled_from([None, None, 1_000_000.0])),
    }
    return Question(now_ms, "get_ohlcv", (PAIR, timeframe), asked)


@given(models(), st.lists(questions(), min_size=10, max_size=25), st.booleans())
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_both_stores_answer_as_the_model_does(
    influxd: Influxd, model: Model, asked: list[Question], forming: bool
) -> None:
    now = [0]
    with tempfile.TemporaryDirectory() as folder, influxd.database(next(_names)) as database:
        both = Both(influxd, database, Path(folder) / "journal.db")
        ahead = candle(max(model.opens, default=START_MS) + H4, timeframe="4h", closed=False)
        both.add(
            [entry(pair, ("4h",)) for pair in (PAIR, OTHER)],
            [candle(ms, timeframe="4h") for ms in model.opens],
            [candle(START_MS + n * H4, OTHER, "4h") for n in range(9)],
            [ahead] if forming else [],
        )
        tell(both.path, {PAIR: model.lives})
        if model.lives:
            say(both, model.lives, NOW_MS)
        with (
            MarketReader.connect(url(both.path), now_ms=lambda: now[0]) as local,
            MarketReader.connect(influxd.url, bucket=database, now_ms=lambda: now[0]) as remote,
        ):
            assert local.lives(PAIR) == remote.lives(PAIR)
            for question in asked:
                now[0] = question.now_ms
                same(answer(question, remote), answer(question, local))
                if question.method == "get_ohlcv":
                    check(local, question, model)


def check(reader: MarketReader, question: Question, model: Model) -> None:
    asked = question.named | {"max_age_s": None}
    length_ms = schema.TIMEFRAMES_MS[question.positional[1]]
    expected, is_across = model.candles(asked, length_ms)
    frame = reader.get_ohlcv(*question.positional, **asked | {"strict": False})
    closed = frame["date"][: len(frame) - frame.attrs["forming"]]
    assert [time.value // 1_000_000 for time in closed] == expected, question
    lives = frame.attrs["lives"]
    number = model.asked(asked["until"], length_ms)
    mine = [[*model.lives[number], "BTCUSDT"]] if model.lives and number >= 0 else []
    assert lives[len(lives) - len(mine) :] == mine
    assert (len(lives) > len(mine)) == is_across, question
    if asked["strict"] and (is_across or frame.attrs["missing"]):
        with pytest.raises(GapError):
            reader.get_ohlcv(*question.positional, **asked)


# --- what several collectors tell -----------------------------------------------------------------------

OLD = (START_MS - 20 * D1, START_MS - 10 * D1)
NEW = (START_MS + 10 * H1 + H1 // 2, None)


def stored(both: Both, clock) -> None:
    clock.ms = START_MS + 2 * D1
    both.add(
        entry(PAIR, ("15m",)),
        [candle(ms, timeframe="15m") for ms in range(OLD[1] - D1, OLD[1], M15)],
        [candle(ms, timeframe="15m") for ms in range(NEW[0], clock.ms, M15)],
    )


def first(reader: MarketReader) -> int:
    frame = reader.get_ohlcv(PAIR, "15m", 1000)
    return int(frame["date"][0].value // 1_000_000)


def told(reader: MarketReader) -> list[Life]:
    return [
        (int(one.listed.timestamp() * 1000), one.ended and int(one.ended.timestamp() * 1000))
        for one in reader.lives(PAIR)
    ]


def test_the_union_of_collectors(both: Both, clock, opened) -> None:
    stored(both, clock)
    assert first(opened()) == OLD[1] - D1
    # One that was there then has stopped, long ago.
    say(both, [OLD], OLD[1] + D1, "host_1")
    assert told(opened()) == [OLD]
    assert first(opened()) == OLD[1] - D1
    say(both, [NEW], clock.ms, "host_2")
    assert told(opened()) == [OLD, NEW]
    assert first(opened()) == NEW[0]
    # It is withdrawn that there was an end: all is one contract.
    say(both, [(OLD[0], None)], clock.ms + H1, "host_2")
    assert told(opened()) == [(OLD[0], None)]
    assert first(opened()) == OLD[1] - D1


def test_the_collectors_own_line(influxd: Influxd, database: str, path: Path, clock) -> None:
    """A journal that is shipped as a collector does: its readers and those of the bucket agree."""
    clock.ms = NEW[0] + 3 * H1
    series = [(PAIR, "15m")]
    lives = made({PAIR: [OLD, NEW]})
    rows = [*range(OLD[1] - D1, OLD[1], M15), *range(NEW[0], clock.ms, M15)]
    store(path, entry(PAIR, ("15m",)), [candle(ms, timeframe="15m") for ms in rows])
    cover(path, clock.ms, clock.ms - NEW[0], series)
    tell(path, {PAIR: [OLD, NEW]})

    def is_told() -> bool:
        return bool(influxd.query("SELECT lives FROM feed_coverage", database))

    async def ship() -> None:
        target = v1_target(influxd, database).settings
        async with shipping(path, target, PACE, clock.now_ms, lambda: lives):
            async with asyncio.timeout(180):
                while not await asyncio.to_thread(is_told):
                    await asyncio.sleep(0.05)

    asyncio.run(ship())
    with (
        MarketReader.connect(url(path), now_ms=clock.now_ms) as local,
        MarketReader.connect(influxd.url, bucket=database, now_ms=clock.now_ms) as remote,
    ):
        assert told(local) == told(remote) == [OLD, NEW]
        for timeframe, asked in (("15m", {}), ("4h", {}), ("1h", {"until": OLD[1]})):
            frame = local.get_ohlcv(PAIR, timeframe, **asked)
            pd.testing.assert_frame_equal(remote.get_ohlcv(PAIR, timeframe, **asked), frame)
            assert remote.get_ohlcv(PAIR, timeframe, **asked).attrs["short"] == frame.attrs["short"]
            assert len(frame)
        assert remote.ready(PAIR, "15m", 500)
        assert local.ready(PAIR, "15m", 500)


def test_a_contract_that_was_over_within_a_candle_has_none(both: Both, clock, opened) -> None:
    stored(both, clock)
    lives = [OLD, (NEW[0], NEW[0] + 60_000)]
    tell(both.path, {PAIR: lives})
    say(both, lives, clock.ms)
    remote = opened()
    with MarketReader.connect(url(both.path), now_ms=clock.now_ms) as local:
        for asked in ({"limit": 9}, {"since": OLD[0]}, {"since": NEW[0] + H1}):
            for timeframe in ("15m", "4h"):
                question = Question(
                    clock.ms, "get_ohlcv", (PAIR, timeframe), {**asked, "max_age_s": None}
                )
                journal = answer(question, local)
                same(answer(question, remote), journal)
                assert len(journal) == 0


def test_a_reader_that_runs_hears_of_it(both: Both, clock, opened, monkeypatch) -> None:
    stored(both, clock)
    say(both, [OLD], OLD[1] + D1)
    reader = opened()
    assert told(reader) == [OLD]
    monkeypatch.setattr(influx_catalog, "CATALOG_S", 0.0)
    monkeypatch.setattr(influx_catalog, "TOLD_S", 0.0)
    say(both, [OLD, NEW], clock.ms)
    assert told(reader) == [OLD, NEW]
    assert first(reader) == NEW[0]


def test_a_listing_that_changed_lets_lives_be_asked_for_at_once(
    both: Both, clock, opened, monkeypatch
) -> None:
    stored(both, clock)
    reader = opened()
    monkeypatch.setattr(influx_catalog, "CATALOG_S", 0.0)
    both.add(entry(PAIR, ("15m",), listed_ms=NEW[0], changed_ms=START_MS + D1))
    say(both, [OLD, NEW], clock.ms)
    told(reader)
    assert told(reader) == [OLD, NEW]


def test_text_that_no_collector_writes_is_named(both: Both, clock, opened) -> None:
    stored(both, clock)
    tags = f"{schema.FEED_COVERAGE},collector=x,pair={PAIR}"
    both.influxd.write(both.database, [f'{tags} {schema.LIVES}="[[1]]" {clock.ms}'])
    with pytest.raises(StoreUnavailableError, match=r"feed_coverage of BTC.*lives: "):
        opened()


# --- funding, mark prices, feeders ------------------------------------------------------------------------


def test_rates_prices_and_downloads_are_those_of_a_journal(both: Both, clock, opened) -> None:
    stored(both, clock)
    times = [*range(OLD[1] - D1, OLD[1] + 1, 4 * H1), *range(START_MS + 12 * H1, clock.ms, 4 * H1)]
    both.add(
        [FundingSettled(PAIR, ms, ms / 1e13, None) for ms in times],
        [MarkPrice(PAIR, OLD[1] + n * 60_000, 0.8, 0.8) for n in range(-60, 1)],
        FundingRate(PAIR, OLD[1], 0.1, OLD[1]),
    )
    tell(both.path, {PAIR: [OLD, NEW]})
    say(both, [OLD, NEW], clock.ms)

    def answers(reader: MarketReader) -> list[object]:
        feeder = Feeder(reader, clock.now_ms)
        downloads = [
            Download(PAIR, timeframe, kind, since_ms, 400)
            for timeframe, kind in (
                ("15m", FUTURES),
                ("4h", FUTURES),
                ("1h", FUNDING_RATE),
                ("1h", MARK),
            )
            for since_ms in (None, OLD[0], OLD[1] - D1, NEW[0] - H1)
        ]
        found: list[object] = [str(one) for one in feeder.answer(downloads)]
        for until_ms in (None, NEW[0], START_MS, OLD[0]):
            frame = reader.get_funding_history(PAIR, until=until_ms)
            found.append((frame.to_dict(), json.dumps(frame.attrs["lives"])))
        for until_ms in (None, OLD[1]):
            frame = reader.get_mark_candles(PAIR, since=OLD[0], until=until_ms)
            found.append((frame.to_dict(), json.dumps(frame.attrs["lives"])))
        for ask in (reader.get_mark_price, reader.get_funding_rate):
            try:
                found.append(repr(ask(PAIR, max_age_s=None)))
            except Exception as error:  # compared
                found.append(repr(error))
        return found

    with MarketReader.connect(url(both.path), now_ms=clock.now_ms) as local:
        assert answers(local) == answers(opened())
        both.add(
            [MarkPrice(PAIR, NEW[0] + n * 60_000, 3.0, 3.0) for n in range(90)],
            FundingRate(PAIR, NEW[0], 0.2, NEW[0] + H1),
        )
        assert local.get_funding_rate(PAIR, max_age_s=None) == 0.2
        assert answers(local) == answers(opened())
