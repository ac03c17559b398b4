"""The reader over a real InfluxDB: many rows, threads, forks, waiting, and points of other writers."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from both import Both
from front import Front
from hypothesis import given, settings
from hypothesis import strategies as st
from influxd import Influxd
from stored import M1, M3, OTHER, PAIR, START_MS, Child, candle, entry, row, url

from marketfeed import schema
from marketfeed.influxdb import line_protocol as lines
from marketfeed.records import Candle, FundingRate, FundingSettled, MarkPrice
from reader import MarketReader, StoreUnavailableError
from reader.rows import CandleQuery
from reader.stores.influx import InfluxStore
from reader.stores.influx_answers import StatementAnswer
from reader.stores.influx_http import InfluxHttp

FAR_MS = 2**62


@pytest.fixture
def both(influxd: Influxd, database: str, tmp_path: Path) -> Both:
    return Both(influxd, database, tmp_path / "journal.db")


@pytest.fixture
def reader(both: Both, clock) -> Iterator[MarketReader]:
    with MarketReader.connect(both.influxd.url, bucket=both.database, now_ms=clock.now_ms) as made:
        yield made


def store_of(reader: MarketReader) -> InfluxStore:
    assert isinstance(reader._store, InfluxStore)
    return reader._store


def write_beside(both: Both, item: Candle) -> None:
    """Write a candle into the database that the journal does not hold."""
    Both(both.influxd, both.database, both.path.with_name("beside.db")).add(item)


# --- how much ---------------------------------------------------------------------------------------


def test_more_rows_than_the_server_puts_into_one_piece(both: Both, reader, clock) -> None:
    """Answers of more than 10,000 rows are marked as partial by the server, and are whole."""
    count = 25_000
    candles = [candle(START_MS + n * M1, timeframe="1m") for n in range(count)]
    both.add(entry(timeframes=("1m",)), entry(OTHER, ("1m",)), candles)
    write_beside(both, candle(START_MS, OTHER, "1m"))
    clock.ms = START_MS + count * M1
    frame = reader.get_ohlcv(PAIR, "1m", since=START_MS)
    assert len(frame) == count
    assert frame.attrs["missing"] == []
    assert [tuple(v) for v in frame.iloc[:, 1:].to_numpy().tolist()] == list(map(row, candles))
    for _ in range(2):
        assert len(reader.get_ohlcv(PAIR, "1m", 12_345)) == 12_345
    many = reader.get_ohlcv_many([OTHER, PAIR], "1m", count, max_age_s=None)
    assert [len(found) for found in many.values()] == [1, count]


@pytest.mark.parametrize("max_rows", [300, 12_000])
def test_a_server_that_cuts_answers_short_is_reported(tmp_path: Path, max_rows: int) -> None:
    with Influxd(tmp_path / "influxd", max_rows=max_rows) as server:
        both = Both(server, "cut", tmp_path / "journal.db")
        server.query('CREATE DATABASE "cut"')
        both.add(
            [entry(pair, ("1m",)) for pair in (PAIR, OTHER)],
            [
                candle(START_MS + n * M1, pair, "1m")
                for n in range(max_rows)
                for pair in (PAIR, OTHER)
            ],
        )
        now_ms = START_MS + max_rows * M1
        with MarketReader.connect(server.url, bucket="cut", now_ms=lambda: now_ms) as reader:
            assert len(reader.get_ohlcv(PAIR, "1m", max_rows - 10)) == max_rows - 10
            for asked in ({"limit": max_rows}, {"since": START_MS}):
                with pytest.raises(StoreUnavailableError, match="set max-row-limit"):
                    reader.get_ohlcv_many([PAIR, OTHER], "1m", **asked)


def test_all_pairs_at_once(both: Both, reader, clock) -> None:
    """More pairs than are asked for by name."""
    pairs = [f"P{number:03d}/USDT:USDT" for number in range(200)]
    both.add(
        [entry(pair) for pair in pairs],
        [candle(START_MS + n * M3, pair) for n in range(3) for pair in pairs],
        [MarkPrice(pair, START_MS + n * 3_000, n + 1.5, 2.5) for n in range(5) for pair in pairs],
        [FundingRate(pair, START_MS + n * M1, n / 100, FAR) for n in range(5) for pair in pairs],
        # Only every other one has been settled, one pair a year ago.
        [FundingSettled(pair, START_MS, 0.5, None) for pair in pairs[::2]],
        FundingSettled(pairs[1], START_MS - 365 * schema.DAY_MS, 0.25, None),
        # One pair lags behind.
        entry("OLD/USDT:USDT"),
        candle(START_MS - 40 * schema.DAY_MS, "OLD/USDT:USDT"),
        FundingRate("OLD/USDT:USDT", START_MS - 40 * schema.DAY_MS, 0.75, FAR),
        MarkPrice("OLD/USDT:USDT", START_MS - 40 * schema.DAY_MS, 7.5, 8.5),
    )
    clock.ms = START_MS + 3 * M3
    for _ in range(2):
        rates = reader.get_all_pairs_funding_rates(max_age_s=None)
        assert list(rates) == sorted([*pairs, "OLD/USDT:USDT"])
        assert {float(rates[pair]) for pair in pairs} == {0.04}
        settled = [rates[pair].settled_rate for pair in pairs[:4]]
        assert settled == [0.5, 0.25, 0.5, None]
        assert rates["OLD/USDT:USDT"] == 0.75
        newest = reader.newest("3m")
        assert newest.pop("OLD/USDT:USDT") == START_MS - 40 * schema.DAY_MS
        assert newest == dict.fromkeys(pairs, START_MS + 2 * M3)
        marks = store_of(reader).mark_prices([*pairs, "OLD/USDT:USDT"])
        assert {mark.mark_price for mark in marks.values()} == {5.5, 7.5}
    assert reader.wait_closed("3m", START_MS, 0) == ("OLD/USDT:USDT",)


FAR = START_MS + schema.DAY_MS


# --- where the newest candles are, is only a belief -------------------------------------------------


@pytest.mark.parametrize("gap", [0, 3, 40, 5_000])
def test_a_limit_is_met_however_long_the_gap(both: Both, reader, clock, gap: int) -> None:
    numbers = [*range(6), *range(6 + gap, 10 + gap)]
    both.add(entry(), [candle(START_MS + n * M3) for n in numbers])
    clock.ms = START_MS + (10 + gap) * M3
    for _ in range(3):  # at first nothing is known of where the newest are
        frame = reader.get_ohlcv(PAIR, "3m", 8)
        assert [(stamp.timestamp() * 1000 - START_MS) / M3 for stamp in frame["date"]] == (
            numbers[-8:]
        )
        assert len(frame.attrs["missing"]) == gap


def test_a_point_from_the_far_future_costs_time_only(both: Both, reader, clock) -> None:
    both.add([entry(), entry(OTHER)], [candle(START_MS + n * M3) for n in range(5)])
    write_beside(both, candle(4_000_000_000_000 // M3 * M3, OTHER))
    clock.ms = START_MS + 5 * M3
    assert len(reader.get_ohlcv(OTHER, "3m")) == 1
    assert len(reader.get_ohlcv(PAIR, "3m")) == 5
    assert reader.newest("3m")[PAIR] == START_MS + 4 * M3


def test_a_pair_is_found_as_soon_as_it_is_collected(both: Both, reader, clock) -> None:
    both.add(entry(), candle(START_MS))
    clock.ms = START_MS + M3
    assert len(reader.get_ohlcv(PAIR, "3m")) == 1
    both.add(entry(OTHER, changed_ms=START_MS + 1), candle(START_MS, OTHER))
    assert len(reader.get_ohlcv(OTHER, "3m")) == 1
    assert [info.pair for info in reader.pairs()] == [PAIR, OTHER]


def test_what_ended_and_came_back_has_not_ended(both: Both, reader, clock) -> None:
    both.add(entry(), candle(START_MS))
    both.add(entry(ended_ms=START_MS + M1, changed_ms=START_MS + M1))
    both.add(entry(changed_ms=START_MS + 2 * M1))
    with MarketReader.connect(both.influxd.url, bucket=both.database) as fresh:
        (info,) = fresh.pairs()
        assert (info.ended, info.since.value // 10**6) == (None, START_MS)


def test_what_is_collected_costs_no_more_the_longer_it_is(tmp_path: Path) -> None:
    """Each row of the catalog is sent again every day, so that a bucket's retention does not take it."""
    days, max_rows = 400, 50
    names = [f"P{number}/USDT:USDT" for number in range(5)]
    with Influxd(tmp_path / "influxd", max_rows=max_rows) as server:
        server.query('CREATE DATABASE "b"')
        tags = [lines.escape_tag(pair) for pair in names]
        # The first ended one day and came back a day later; the second has ended.
        server.write(
            "b",
            [
                lines.catalog_text(
                    tag,
                    "3m" if day else "1m,3m",
                    START_MS if day == days - 1 else None,
                    START_MS if (number, day) == (0, 7) or (number == 1 and day > 9) else None,
                    START_MS + day * schema.DAY_MS,
                    dropped=False,
                )
                for number, tag in enumerate(tags)
                for day in range(number, days)
            ],
        )
        with MarketReader.connect(server.url, bucket="b") as reader:
            rows = store_of(reader).catalog()
    assert [row.pair for row in rows] == names
    assert [row.since_ms for row in rows] == [START_MS + day * schema.DAY_MS for day in range(5)]
    assert {(row.timeframes, row.listed_ms) for row in rows} == {(("3m",), START_MS)}
    assert [row.ended_ms for row in rows] == [None, START_MS, None, None, None]


def test_what_is_new_in_the_catalog_is_seen_soon_and_what_is_old_by_its_name(
    both: Both, reader
) -> None:
    """Between two looks at all of it, one at the last days is enough: in a day all is sent again."""
    now_ms = int(time.time() * 1000)

    def note(pair: str, days_ago: float, ended_ms: int | None = None) -> None:
        time_ms = now_ms - int(days_ago * schema.DAY_MS)
        text = lines.catalog_text(
            lines.escape_tag(pair), "3m", None, ended_ms, time_ms, dropped=False
        )
        both.influxd.write(both.database, [text])

    def look(what: str) -> list[tuple[str, float, bool]]:
        catalog = store_of(reader)._catalog
        catalog._seen = catalog._seen._replace(**{what: -math.inf})
        rows = store_of(reader).catalog()
        return [
            (r.pair, (now_ms - r.since_ms) / schema.DAY_MS, r.ended_ms is not None) for r in rows
        ]

    note("B", 100)
    note("B", 1)
    note("D", 90)
    assert look("asked_s") == [("B", 100, False), ("D", 90, False)], "nothing was known: all of it"
    # From a clock that is wrong.
    note("B", -30_000)
    assert look("whole_s") == [("B", 100, False), ("D", 90, False)]
    note("B", -30_001, ended_ms=now_ms)
    note("C", 50)
    note("C", 0.5)
    note("A", 70)
    assert look("asked_s") == [("B", 100, True), ("C", 50, False), ("D", 90, False)]
    assert [row.pair for row in store_of(reader).catalog(["D", "A", "X"])] == ["A", "D"]
    note("E", 60, ended_ms=now_ms)
    assert [pair for pair, _, _ in look("asked_s")] == ["A", "B", "C", "D"]
    assert look("whole_s")[-1] == ("E", 60, True)


def test_a_forming_candle_whose_closed_one_never_came_is_not_shown(
    both: Both, reader, clock
) -> None:
    """The journal forgets a forming candle when a later one has closed; the points of it stay here."""
    both.add(entry(), candle(START_MS), candle(START_MS + M3, closed=False))
    both.add(candle(START_MS + 2 * M3))
    clock.ms = START_MS + 3 * M3
    for until in (None, START_MS + 2 * M3, START_MS + 3 * M3):
        frame = reader.get_ohlcv(PAIR, "3m", until=until, include_forming=True)
        assert frame.attrs["forming"] is False
        assert len(frame) == (1 if until == START_MS + 2 * M3 else 2)


# --- what comes while a question is answered --------------------------------------------------------


class Meanwhile(InfluxHttp):
    """Stores `coming` right after rows of candles were read, before anything else is asked."""

    def __init__(self, both: Both) -> None:
        super().__init__(urlsplit(both.influxd.url), both.database)
        self.coming: list[Candle] = []
        self._both = both

    def ask(
        self, statements: Sequence[str], parameters: Mapping[str, str]
    ) -> list[StatementAnswer]:
        answers = super().ask(statements, parameters)
        if self.coming and "ORDER BY time DESC" in statements[-1]:
            self._both.add(self.coming)
            self.coming = []
        return answers


STORED = range(10, 20)
SINCE_MS = START_MS + 5 * M3
NEXT_MS = START_MS + 20 * M3
MEANWHILE: list[tuple[str, dict[str, object], list[int]]] = [
    ("3m", {"since": SINCE_MS}, [20]),
    ("3m", {"since": SINCE_MS, "limit": 15}, [20]),
    ("3m", {"since": SINCE_MS, "until": NEXT_MS + M3}, [20]),
    ("3m", {"since": NEXT_MS}, [20]),
    ("3m", {"since": NEXT_MS, "until": NEXT_MS + M3}, [20]),
    ("3m", {"since": NEXT_MS - M3, "include_forming": True}, [20]),
    ("3m", {"until": NEXT_MS + M3}, [20]),
    ("15m", {"since": SINCE_MS}, [20, 21, 22, 23, 24]),
    ("15m", {"since": NEXT_MS - 2 * M3}, [20, 21, 22, 23, 24]),
    # History, that is filled from its end.
    ("3m", {"since": SINCE_MS}, [6, 7, 8, 9]),
    ("15m", {"since": SINCE_MS}, [5, 6, 7, 8, 9]),
]


@pytest.mark.parametrize(("timeframe", "asked", "coming"), MEANWHILE)
def test_what_comes_between_two_questions_is_not_missing(
    both: Both, clock, timeframe: str, asked: dict[str, object], coming: list[int]
) -> None:
    """The answer is that of the moment at which the rows were read, as a journal gives it."""
    both.add(
        entry(),
        [candle(START_MS + n * M3) for n in STORED],
        candle(NEXT_MS, closed=False),
    )
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    clock.ms = NEXT_MS + 5 * M3 if timeframe == "15m" else NEXT_MS + M3
    with MarketReader.connect(url(both.path), now_ms=clock.now_ms) as journal:
        before = journal.get_ohlcv(PAIR, timeframe, strict=True, **asked)
    http = Meanwhile(both)
    with MarketReader(InfluxStore(http), clock.now_ms) as reader:
        reader.get_ohlcv(PAIR, "3m", max_age_s=None)  # from now on it knows where the newest are
        http.coming = [candle(START_MS + n * M3) for n in coming]
        frame = reader.get_ohlcv(PAIR, timeframe, strict=True, **asked)
        assert not http.coming
        pd.testing.assert_frame_equal(frame, before)
        assert frame.attrs | {"source": ""} == before.attrs | {"source": ""}
        # And the next answer has it.
        later = reader.get_ohlcv(PAIR, timeframe, since=START_MS + coming[0] * M3)
        assert later["date"].iloc[0].value // 10**6 == (START_MS + coming[0] * M3)
        assert len(later) >= len(coming) * M3 // length_ms


# --- waiting ----------------------------------------------------------------------------------------


def test_wait_closed_returns_when_the_last_pair_is_there(both: Both, reader) -> None:
    both.add([entry(), entry(OTHER)], candle(START_MS))
    answers: list[tuple[str, ...]] = []
    thread = threading.Thread(target=lambda: answers.append(reader.wait_closed("3m", START_MS, 30)))
    thread.start()
    both.add(candle(START_MS + M3, OTHER))
    assert not answers
    both.add(candle(START_MS, OTHER))
    thread.join()
    assert answers == [()]


def test_a_version_differs_when_it_is_time_to_look_again(reader) -> None:
    version = reader.version()
    assert reader.wait_change(version, 30) is True
    assert reader.version() != version


# --- threads and forks ------------------------------------------------------------------------------


def in_threads(*calls: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_threads_share_a_reader(both: Both, reader, clock) -> None:
    pairs = [f"P{number}/USDT:USDT" for number in range(8)]
    both.add(
        [entry(pair) for pair in pairs],
        [candle(START_MS + n * M3, pair) for n in range(50) for pair in pairs],
    )
    clock.ms = START_MS + 50 * M3

    def reading(pair: str) -> None:
        for limit in itertools.islice(itertools.cycle((1, 7, 50)), 30):
            frame = reader.get_ohlcv(pair, "3m", limit)
            expected = [row(candle(START_MS + n * M3, pair)) for n in range(50 - limit, 50)]
            assert [tuple(v) for v in frame.iloc[:, 1:].to_numpy().tolist()] == expected

    in_threads(*(lambda pair=pair: reading(pair) for pair in pairs * 2))


def test_parent_and_children_read_on_after_forks(both: Both, reader, clock) -> None:
    both.add(entry(), [candle(START_MS + n * M3) for n in range(500)])
    clock.ms = START_MS + 500 * M3
    done = threading.Event()

    def count() -> int:
        return len(reader.get_ohlcv(PAIR, "3m"))

    def reading() -> None:
        while not done.is_set():
            assert count() == 500

    def forking() -> None:
        try:
            for _ in range(10):
                with Child(count=count) as child:
                    assert (child("count"), count(), child("count")) == (500, 500, 500)
        finally:
            done.set()

    in_threads(forking, reading, reading)


# --- points of other writers ------------------------------------------------------------------------


def test_points_with_a_further_tag_are_reported(both: Both, reader, clock) -> None:
    both.add(entry(), [candle(START_MS + n * M3) for n in range(3)])
    clock.ms = START_MS + 3 * M3
    tags = f"{lines.escape_tag(PAIR)},exchange=x"
    twin = lines.candle_text("ohlcv_3m", tags, *[1.5] * 7, trades=1, open_time_ms=START_MS + M3)
    both.influxd.write(both.database, [twin])
    with pytest.raises(StoreUnavailableError, match=r"several candles at one time.*further tag"):
        reader.get_ohlcv(PAIR, "3m")


def test_candles_without_a_price_are_reported(both: Both, reader, clock) -> None:
    both.add(entry(), candle(START_MS))
    both.influxd.write(both.database, [f"ohlcv_3m,pair={PAIR} open=1.5,close=2.5 {START_MS + M3}"])
    clock.ms = START_MS + 2 * M3
    with pytest.raises(StoreUnavailableError, match=r"no marketfeed wrote.*marketfeed check"):
        reader.get_ohlcv(PAIR, "3m")


def test_a_field_of_another_type_is_reported(both: Both, reader, clock) -> None:
    both.influxd.write(
        both.database, [f'mark_price,pair={PAIR} mark_price="1",index_price="2" {START_MS}']
    )
    both.add([entry(), entry(OTHER)])
    with pytest.raises(StoreUnavailableError, match="Expected `float"):
        reader.get_mark_price(PAIR)


def test_half_a_point_is_reported_when_it_is_asked_for(both: Both, reader, clock) -> None:
    pairs = [f"P{number:02d}/USDT:USDT" for number in range(30)]
    both.add(
        [entry(pair) for pair in pairs], [FundingRate(pair, START_MS, 0.5, FAR) for pair in pairs]
    )
    assert len(store_of(reader).funding_rates(pairs)) == 30
    half = f"funding_rate,pair={pairs[7]} rate=0.25 {START_MS + schema.MINUTE_MS}"
    both.influxd.write(both.database, [half])
    others = [pair for pair in pairs if pair != pairs[7]]
    assert len(store_of(reader).funding_rates(others)) == 29
    for asked in (pairs, [pairs[7]]):
        with pytest.raises(StoreUnavailableError, match="Expected `int"):
            store_of(reader).funding_rates(asked)


def test_an_index_price_may_lack_and_alone_is_no_mark_price(both: Both, reader, clock) -> None:
    both.add([entry()], [MarkPrice(PAIR, START_MS, 1.5, 2.5)])
    both.influxd.write(
        both.database, [f"mark_price,pair={PAIR} index_price=9.5 {START_MS + 2_000}"]
    )
    assert store_of(reader).mark_prices([PAIR])[PAIR][1:] == (START_MS, 1.5, 2.5)
    both.influxd.write(both.database, [f"mark_price,pair={PAIR} mark_price=3.5 {START_MS + 3_000}"])
    assert store_of(reader).mark_prices([PAIR])[PAIR][1:] == (START_MS + 3_000, 3.5, None)


def test_points_of_no_pair_and_of_other_pairs_do_no_harm(both: Both, reader, clock) -> None:
    pairs = [f"P{number:02d}/USDT:USDT" for number in range(30)]
    both.add(
        [entry(pair) for pair in pairs],
        [candle(START_MS, pair) for pair in pairs],
        [FundingRate(pair, START_MS, 0.5, FAR) for pair in pairs],
    )
    both.influxd.write(
        both.database,
        [
            f"ohlcv_3m open=1.5 {START_MS}",
            f"ohlcv_3m,symbol=BTCUSDT open=1.5 {START_MS}",
            f"funding_rate,symbol=BTCUSDT predicted_rate=60000 {START_MS + M1}",
            f"funding_rate,symbol=BTCUSDT rate=0.1 {START_MS + M1}",
            *(f"funding_rate,pair={pair} predicted_rate=60000.5 {START_MS + M1}" for pair in pairs),
            f'feed_catalog,symbol=BTCUSDT timeframes="3m" {START_MS + M1}',
        ],
    )
    clock.ms = START_MS + M3
    assert set(reader.get_all_pairs_funding_rates(max_age_s=None).values()) == {0.5}
    assert reader.get_funding_rate(pairs[0], max_age_s=None) == 0.5
    assert list(reader.newest("3m")) == pairs
    assert reader.wait_closed("3m", START_MS, 0) == ()
    assert len(reader.get_ohlcv_many(pairs, "3m")) == 30
    assert len(reader.pairs()) == 30


def test_a_tag_that_is_no_text_is_reported(both: Both, reader) -> None:
    both.add(entry(), candle(START_MS))
    body = b"ohlcv_3m,pair=\xff\xfe open=1.5 1767225600000"
    assert both.influxd.post_lines(both.database, body)[0] == 204
    with pytest.raises(StoreUnavailableError):
        reader.wait_closed("3m", START_MS, 0)
    assert len(reader.get_ohlcv(PAIR, "3m", max_age_s=None)) == 1, "others are not concerned"


# --- names ------------------------------------------------------------------------------------------

NEIGHBOURS = [
    "A",
    "A' OR '1'='1",
    "$p0",
    '"',
    "'",
    "\\",
    "A)",
    "A,pair=B",
    "A B",
    "A=B",
    "*",
    "/A/",
]
texts = st.sampled_from(NEIGHBOURS) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)


@given(st.lists(texts, min_size=1, max_size=6, unique=True))
@settings(max_examples=60, deadline=None)
def test_names_change_no_question(influxd: Influxd, names: list[str]) -> None:
    """Whatever a pair is called, what is answered are its own rows, and no line breaks another."""
    numbers = {name: 1.5 + number for number, name in enumerate([*NEIGHBOURS, *names])}
    # Line ends are written as \n, so two names may become one: the later wins.
    kept = {lines.escape_tag(name): name for name in numbers}
    with influxd.database("names") as database:
        influxd.write(
            database,
            [
                text
                for tag, name in kept.items()
                for value in [numbers[name]]
                for text in (
                    lines.candle_text(
                        "ohlcv_3m", tag, *[value] * 7, trades=1, open_time_ms=START_MS
                    ),
                    lines.mark_price_text(tag, START_MS, value, value),
                    lines.funding_rate_text(tag, START_MS, value, None, START_MS),
                    lines.funding_settled_text(tag, START_MS, value, None),
                    lines.catalog_text(tag, "3m", None, None, START_MS, dropped=False),
                )
            ],
        )
        with MarketReader.connect(influxd.url, bucket=database) as reader:
            store = store_of(reader)
            asked = list(numbers)
            rows = store.candles(CandleQuery(asked, "3m", 0, FAR_MS, 5, forming=True))
            for name, found in zip(asked, rows, strict=True):
                own = [numbers[name]] if name in stored_as_they_are(kept) else []
                assert found.values[:, 1].tolist() == own
                assert [m.mark_price for m in store.mark_prices([name]).values()] == own
                assert [f.rate for f in store.funding_rates([name]).values()] == own
                assert [row.rate for row in store.settled_rates(name, 0, FAR_MS)] == own
                assert len(store.catalog([name])) == len(own)


def stored_as_they_are(kept: dict[str, str]) -> set[str]:
    """Names that read back as they were; of the others it is enough that they find no foreign rows."""
    return {
        name for name in kept.values() if not name.endswith("\\") and not set("\n\r\t") & set(name)
    }


# --- 2.x and 3 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("json_only", [False, True])
def test_the_same_answers_from_a_2_x_and_from_one_that_speaks_json_alone(
    influxd: Influxd, tmp_path: Path, json_only: bool
) -> None:
    pairs = [f"P{number:02d}/USDT:USDT" for number in range(20)]
    with Front(influxd, json_only=json_only) as front:
        both = Both(influxd, front.add_bucket("market data").database, tmp_path / "journal.db")
        both.add(
            [entry(pair, listed_ms=START_MS) for pair in pairs],
            [candle(START_MS + n * M3, pair) for n in range(20) for pair in pairs],
            candle(START_MS + 20 * M3, pairs[0], closed=False),
            [FundingRate(pair, START_MS, 0.5, FAR) for pair in pairs],
            [FundingSettled(pair, START_MS, 0.25, 3.5) for pair in pairs],
            [MarkPrice(pair, START_MS, 3.0, 4.5) for pair in pairs],
        )
        options = {"now_ms": lambda: START_MS + 20 * M3}
        with (
            MarketReader.connect(
                front.url, token=front.token, bucket="market data", **options
            ) as there,
            MarketReader.connect(influxd.url, bucket=both.database, **options) as here,
        ):
            for reader in (there, here):
                frame = reader.get_ohlcv(pairs[0], "3m", 5, include_forming=True)
                assert np.array_equal(
                    frame.iloc[:, 1:].to_numpy(),
                    [
                        row(candle(START_MS + n * M3, pairs[0], closed=n < 20))
                        for n in range(15, 21)
                    ],
                )
                assert reader.get_mark_price(pairs[0], max_age_s=None) == 3.0
                rates = reader.get_all_pairs_funding_rates(max_age_s=None)
                assert {rate.settled_rate for rate in rates.values()} == {0.25}
                assert len(reader.get_funding_history(pairs[1])) == 1
                assert len(reader.newest("3m")) == 20
                assert reader.wait_closed("3m", START_MS, 0) == ()
            assert there.pairs() == here.pairs()
        assert front.counts.queries > 0
