"""Mark candles in a bucket: shipped, told of, read as from a journal, and never fought over."""

from pathlib import Path
from typing import Final

from filled import T0
from influxd import Influxd

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.influxdb.coverage_points import CoveragePoints
from marketfeed.influxdb.journal_outbox import JournalOutbox
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Promise
from marketfeed.journal.journal import KIND, Journal
from marketfeed.records import Candle, CatalogEntry
from marketfeed.storage.ranges import Acknowledged
from reader import MarketReader

PAIR: Final = "BTC/USDT:USDT"
KEY: Final = (PAIR, schema.MARK_1H)
H1: Final = schema.HOUR_MS
START_MS: Final = schema.floor_to(T0, H1)
HOURS: Final = 40


def mark(hour: int, close: float | None = None) -> Candle:
    x = 100.0 + hour
    return Candle(
        PAIR, schema.MARK_1H, START_MS + hour * H1, x, x + 2, x - 2, x + 1 if close is None else close,
        0, 0, 0, 0, True, START_MS + (hour + 1) * H1,
    )  # fmt: skip


def filled(path: Path) -> Path:
    """A journal with HOURS of them, all promised."""
    with Journal.open(path) as journal:
        journal.promise([Promise(PAIR, schema.MARK_1H, START_MS + HOURS * H1, HOURS * H1)])
        batch = Batch(candles=[mark(hour) for hour in range(HOURS)])
        batch.add(CatalogEntry(PAIR, "BTCUSDT", ("1h",), START_MS, 5, None, START_MS))
        journal.write(batch)
    return path


def ship(influxd: Influxd, database: str, path: Path, acknowledged: Acknowledged) -> list[str]:
    """Ship what is not acknowledged; returns the lines."""
    outbox = JournalOutbox(path, "test host")
    try:
        lines, covers = outbox.newest(acknowledged, 1 << 40)
    finally:
        outbox.close()
    if lines:
        influxd.write(database, lines)
    for piece in covers:
        acknowledged.add(piece)
    return [line for line in lines if line.startswith("mark_1h,")]


def test_both_stores_give_the_same(influxd: Influxd, database: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "journal.db")
    shipped = ship(influxd, database, path, Acknowledged.alike(KIND.measurements))
    assert len(shipped) == HOURS
    now_ms = START_MS + HOURS * H1 + 30_000
    with (
        MarketReader.connect(f"sqlite:///{path}", now_ms=lambda: now_ms) as one,
        MarketReader.connect(influxd.url, bucket=database, now_ms=lambda: now_ms) as two,
    ):
        for timeframe in ("1h", "4h"):
            ours, theirs = (
                reader.get_mark_candles(PAIR, timeframe, since=START_MS - 10 * H1)
                for reader in (one, two)
            )
            assert len(ours) == HOURS * H1 // schema.TIMEFRAMES_MS[timeframe]
            assert ours.equals(theirs)
            assert ours.attrs["made"] == theirs.attrs["made"] == []


def test_a_row_that_two_collectors_have_is_shipped_once_by_each(
    influxd: Influxd, database: str, tmp_path: Path
) -> None:
    paths = [filled(tmp_path / name) for name in ("one.db", "two.db")]
    known = [Acknowledged.alike(KIND.measurements) for _ in paths]
    for _ in range(2):
        counts = [
            len(ship(influxd, database, path, of)) for path, of in zip(paths, known, strict=True)
        ]
        # Asked again, the exchange says the same: that is no news, and nothing is written over.
        for path in paths:
            with Journal.open(path) as journal:
                journal.write(Batch(candles=[mark(hour) for hour in range(HOURS)]))
    assert counts == [0, 0]
    # Another word of the exchange is taken by each as it asks, and then they agree.
    for path, of in zip(paths, known, strict=True):
        with Journal.open(path) as journal:
            journal.write(Batch(candles=[mark(7, 106.5)]))
        (line,) = ship(influxd, database, path, of)
        assert "close=106.5 " in line
    (series,) = influxd.query("SELECT close FROM mark_1h GROUP BY pair", database)
    assert len(series["values"]) == HOURS
    assert series["values"][7][1] == 106.5


def test_what_a_bucket_has_of_them_is_told_as_of_candles(
    influxd: Influxd, database: str, tmp_path: Path
) -> None:
    path = filled(tmp_path / "journal.db")
    acknowledged = Acknowledged.alike(KIND.measurements)
    with Journal.open(path) as journal:
        stored = dict(journal.mark_coverage)
        journal.put_aside(
            "target", [(f"mark_1h,pair={PAIR} open=1 {mark(9).open_time_ms}", "no")], 0
        )
    now_ms = START_MS + HOURS * H1 + 30_000
    points = CoveragePoints("target", 60.0, lambda: stored, lambda: now_ms)

    def told() -> dict[str, dict[str, TimeRange]]:
        outbox = JournalOutbox(path, "test host")
        try:
            points.look(outbox, acknowledged)
            lines = points.lines(0.0)
        finally:
            outbox.close()
        influxd.write(database, lines)
        return points._due

    from_ms, until_ms = stored[KEY].from_ms, stored[KEY].end_ms
    assert told() == {PAIR: {schema.MARK_1H: TimeRange(from_ms, from_ms)}}
    ship(influxd, database, path, acknowledged)
    # A refused hour ends it.
    assert told() == {PAIR: {schema.MARK_1H: TimeRange(START_MS + 10 * H1, until_ms)}}
    (row,) = influxd.query("SELECT from_mark_1h, until_mark_1h FROM feed_coverage", database)[0][
        "values"
    ]
    assert row[1:] == [START_MS + 10 * H1, until_ms]
    with MarketReader.connect(influxd.url, bucket=database, now_ms=lambda: now_ms) as reader:
        reader.pairs()
        assert reader._store.mark_coverage(PAIR) == (START_MS + 10 * H1, until_ms)
