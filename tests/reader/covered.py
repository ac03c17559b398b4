"""Journals that tell what is promised and missing of their series, as a collector makes them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stored import PAIR, START_MS

from marketfeed import schema
from marketfeed.grid import TimeRange
from marketfeed.journal.batch import Batch
from marketfeed.journal.coverage import Covered, Key, Promise
from marketfeed.journal.journal import Journal

SERIES: Sequence[Key] = ((PAIR, "3m"),)
COLLECTOR = "host_1"


def cover(
    path: Path,
    now_ms: int,
    keep_ms: int,
    series: Iterable[Key] = SERIES,
    absent: Iterable[tuple[Key, TimeRange]] = (),
) -> None:
    """Promise series `keep_ms` back from `now_ms`, look them through, and twice answer without `absent`."""
    keys, twice = list(series), list(absent)
    with Journal.open(path) as journal:
        journal.promise([Promise(pair, timeframe, now_ms, keep_ms) for pair, timeframe in keys])
        journal.look_through(keys, 100_000)
        for hours in (1, 2):
            batch = Batch()
            batch.absent += [(*one, now_ms + hours * schema.HOUR_MS) for one in twice]
            journal.write(batch)


def whole_part(known: Covered, opens: Iterable[int], length_ms: int) -> tuple[int, int] | None:
    """The newest part of a series in which every candle is stored or known to be absent, slot by slot.

    One of absent candles alone counts only where nothing is missing below.
    """
    stored = set(opens)
    floor_ms = max(known.from_ms, known.looked_ms)
    good = {
        at: at in stored or bool(known.absent_ms(TimeRange(at, at + length_ms)))
        for at in range(floor_ms, known.end_ms, length_ms)
    }
    until_ms = known.end_ms
    while until_ms > floor_ms:
        from_ms = until_ms
        while good.get(from_ms - length_ms, False):
            from_ms -= length_ms
        part = range(from_ms, until_ms, length_ms)
        if part and (from_ms == floor_ms or not stored.isdisjoint(part)):
            return from_ms, until_ms
        until_ms = from_ms - length_ms
    return None


def coverage_line(
    pair: str,
    parts: dict[str, tuple[int, int]],
    time_ms: int = START_MS,
    collector: str = COLLECTOR,
) -> str:
    """A point of `feed_coverage` as line protocol; pairs and collectors of tests need no escaping."""
    fields = ",".join(
        f"{name}={edge_ms}i"
        for timeframe, part in parts.items()
        for name, edge_ms in zip(schema.coverage_fields(timeframe), part, strict=True)
    )
    hour_ms = schema.floor_to(time_ms, schema.HOUR_MS)
    return f"{schema.FEED_COVERAGE},collector={collector},pair={pair} {fields} {hour_ms}"
