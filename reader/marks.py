"""Candles of the mark price: those that the exchange gives by the hour, and the rest made of mark prices."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from marketfeed import schema
from reader import frames
from reader.collected import of_lives
from reader.coverage import never_come
from reader.frames import Floats, Times
from reader.life import OPEN_MS, LifeRow, Part, asked_across, before
from reader.rows import CatalogRow
from reader.stores.store import Store

MOST_RUNS: Final = 8
"""Questions for mark prices that one call asks at most."""
POINTS_MS: Final = 2 * schema.DAY_MS
"""So far before an older life's end its mark prices are looked for: one is enough, and there are many."""
_NONE = np.empty(0, np.int64)


class MarkCandles(NamedTuple):
    """Rows (open time, prices, volume 0); which were `made` of mark prices; which will never come.

    `absent` are hours of which the exchange, asked twice, has none either. Open times in ms. `lives` are
    those whose stored rows were asked for, oldest first: the rows are of the last one.
    """

    values: Floats
    made: Times
    absent: Times
    lives: Sequence[LifeRow]


def asked(
    store: Store,
    entries: Mapping[str, CatalogRow],
    length_ms: int,
    start_ms: int,
    until_ms: int | None,
    now_ms: int,
) -> MarkCandles:
    """`read` of the only pair of `entries`, whose lives reach as far as its candles."""
    (pair,) = entries

    def by(rows: Mapping[str, CatalogRow]) -> MarkCandles:
        return read(store, rows[pair], length_ms, start_ms, until_ms, now_ms)

    def newest_ms(found: MarkCandles) -> dict[str, int]:
        opens = _opens(found.values)
        return {pair: min(int(opens[-1]) + length_ms, now_ms)} if len(opens) else {}

    _, found = of_lives(store, entries, by, newest_ms)
    return found


def read(
    store: Store,
    entry: CatalogRow,
    length_ms: int,
    start_ms: int,
    until_ms: int | None,
    now_ms: int,
) -> MarkCandles:
    """Return the candles that open at `start_ms`, on the grid, or later, and before `until_ms`.

    Of whole hours those that are stored count. What has not been fetched, the last hour's for some minutes
    and the one that forms, is made of the mark prices. All are of one life of the pair.
    """
    pair, part, asked_ms = entry.pair, before(entry.lives, until_ms, length_ms), start_ms
    end_ms = now_ms + length_ms if until_ms is None else min(now_ms + length_ms, until_ms)
    end_ms = min(schema.ceil_to(end_ms, length_ms), part.owned(length_ms)[1])
    begin_ms = part.events()[0]
    if length_ms % schema.HOUR_MS:
        minutes = store.mark_minutes(pair, max(start_ms, begin_ms), end_ms)
        values = frames.mark_candles(minutes, length_ms, now_ms, begin_ms)
        lives = asked_across(entry.lives, part, _across_ms(store, entry, part, asked_ms))
        return MarkCandles(values, _opens(values), _NONE, lives)
    first_ms, own_end_ms = part.owned(schema.HOUR_MS)
    start_ms, end_ms = max(start_ms, first_ms), min(end_ms, own_end_ms)
    stored = store.mark_hours(pair, asked_ms, end_ms)
    mine = stored[:, 0] >= start_ms
    older, stored = stored[~mine], stored[mine]
    across_ms = int(older[0, 0]) if len(older) else _across_ms(store, entry, part, asked_ms)
    lives = asked_across(entry.lives, part, across_ms)
    last_ms = min(end_ms, schema.floor_to(now_ms, schema.HOUR_MS) + schema.HOUR_MS)
    expected = np.arange(start_ms, last_ms, schema.HOUR_MS, dtype=np.int64)
    lacking = np.setdiff1d(expected, _opens(stored), assume_unique=True)
    hours, made, absent = np.c_[stored, np.zeros(len(stored))], _NONE, _NONE
    if len(lacking):
        minutes = np.vstack(
            [
                store.mark_minutes(pair, max(int(run[0]), begin_ms), int(run[-1]) + schema.HOUR_MS)
                for run in _runs(lacking)
            ]
        )
        points = frames.mark_candles(minutes, schema.HOUR_MS, now_ms, begin_ms)
        points = points[np.isin(_opens(points), lacking)]
        made = _opens(points)
        hours = np.vstack([hours, points])
        hours = hours[np.argsort(hours[:, 0], kind="stable")]
        holes = np.setdiff1d(lacking, made, assume_unique=True)
        if len(holes):
            absent = _absent(store, pair, holes, hours, first_ms)
    if length_ms == schema.HOUR_MS:
        return MarkCandles(hours, made, absent, lives)
    values = _longer(hours, length_ms, now_ms, first_ms)
    made = np.intersect1d(_opens(values), made // length_ms * length_ms)
    return MarkCandles(values, made, _NONE, lives)


def frame(found: MarkCandles, attrs: Mapping[str, object]) -> pd.DataFrame:
    """Return them as a frame."""
    told = {
        "made": frames.open_times(found.made),
        "absent": frames.open_times(found.absent),
        "lives": [list(life) for life in found.lives],
    }
    return frames.mark_frame(found.values, {**attrs, **told})


def _across_ms(store: Store, entry: CatalogRow, part: Part, asked_ms: int) -> int | None:
    """When a mark price stands that was asked for and is of an older life, if one is stored."""
    for life in entry.lives:
        end_ms = min(life.end_ms, part.start_ms)
        start_ms = max(asked_ms, life.listed_ms, end_ms - POINTS_MS)
        if life.listed_ms < part.start_ms and start_ms < end_ms:
            minutes = store.mark_minutes(entry.pair, start_ms, end_ms)
            if len(minutes):
                return int(minutes[0, 0])
    return None


def _absent(store: Store, pair: str, holes: Times, hours: Floats, first_ms: int) -> Times:
    """Those of `holes` that the exchange does not have either; beside the `hours` that are there.

    `first_ms` is the first hour of this life.
    """
    told = store.mark_coverage(pair)
    absent = holes[never_come(told, holes, schema.HOUR_MS)]
    if told is None or not len(absent):
        return _NONE
    # What was stored since the rows were read is told of, too, and is not absent.
    since = store.mark_hours(pair, int(absent[0]), int(absent[-1]) + schema.HOUR_MS)
    absent = np.setdiff1d(absent, _opens(since), assume_unique=True)
    begun_ms = int(hours[0, 0]) if len(hours) else OPEN_MS
    if len(absent) and absent[0] < begun_ms:
        # A bucket's expiry takes rows, and its collectors do not tell: one before proves that it has not.
        before_ms = int(absent[0])
        if not len(store.mark_hours(pair, max(first_ms, told.from_ms), before_ms)):
            return absent[absent > begun_ms]
    return absent


def _opens(values: Floats) -> Times:
    return values[:, 0].astype(np.int64)


def _runs(hours: Times) -> list[Times]:
    """Hours that follow each other, together: one that lacks for ever costs no more than itself."""
    runs = np.split(hours, np.flatnonzero(np.diff(hours) > schema.HOUR_MS) + 1)
    return runs if len(runs) <= MOST_RUNS else [hours]


def _longer(hours: Floats, length_ms: int, now_ms: int, first_ms: int) -> Floats:
    """Put hours together to longer candles; one that lacks an hour is left out."""
    candles = frames.mark_candles(hours[:, :5], length_ms, now_ms, first_ms, schema.HOUR_MS)
    opens = hours[:, 0] // length_ms * length_ms
    counts = np.array([np.count_nonzero(opens == at) for at in candles[:, 0]], np.int64)
    last_ms = np.minimum(candles[:, 0] + length_ms, now_ms // schema.HOUR_MS * schema.HOUR_MS)
    last_ms = np.where(candles[:, 0] + length_ms > now_ms, last_ms + schema.HOUR_MS, last_ms)
    whole: Floats = candles[
        counts * schema.HOUR_MS == last_ms - np.maximum(candles[:, 0], first_ms)
    ]
    return whole
