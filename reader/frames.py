"""Rows to DataFrames: resampling, completeness and the shape that Freqtrade has.

Pure: arrays in, arrays and frames out. Candles are float64 arrays of shape (n, 6) or more with the columns
open time (ms), open, high, low, close, volume, and what else is asked for, which are all sums over time;
oldest first; times are exact in them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from marketfeed import schema
from reader.arguments import CandleRequest
from reader.coverage import HISTORY, LISTED, Interval, Short, never_come, why_short
from reader.life import ALL, Part
from reader.rows import CandleRows, CatalogRow, FundingRow, SettledRow

PURE = True

Floats = NDArray[np.float64]
Times = NDArray[np.int64]

GRACE_MS: Final = 15_000
"""How long after its close a candle may be on its way before it counts as missing."""

_UNIT: Final = pd.to_datetime([0], unit="ms", utc=True).unit
"""Which one pandas takes differs between its versions; so made, an index needs a third of the time."""
_PRICES: Final = pd.Index(["open", "high", "low", "close", "volume"])


@dataclass(frozen=True, slots=True)
class StoredCandles:
    """The candles of one pair in the timeframe asked for.

    `truncated`: the limit cut older candles off. `first_ms` is the open time of the oldest candle that
    can exist, `reach_ms` the end (exclusive) of the open times that stored rows speak of: a candle
    before it that is not there is missing. Both None when nothing is stored. `told` is where the series
    that it is made of is whole, None where nobody tells. All of it is of `part` of the pair's series;
    `across_ms` is the oldest candle of another part that was asked for and is stored, None of none.
    """

    values: Floats
    truncated: bool
    first_ms: int | None
    reach_ms: int | None
    forming: tuple[float, ...] | None
    told: Interval | None = None
    part: Part = ALL
    across_ms: int | None = None


class OpenTimes(list[int]):
    """Open times (ms), ascending: a list whose deep copy is a plain one's copy.

    pandas copies a frame's `attrs` deeply whenever it makes another frame or column of it, time by time.
    JSON, in which pandas saves `attrs` to files, has numbers and no Timestamp.
    """

    def __deepcopy__(self, memo: dict[int, object]) -> "OpenTimes":
        return OpenTimes(self)

    def __reduce__(self) -> tuple[type[list[int]], tuple[list[int]]]:
        # Who reads a pickled frame need not have this package.
        return list, (list(self),)


# --- resampling -----------------------------------------------------------------------------------


def series(
    rows: CandleRows,
    source_ms: int,
    request: CandleRequest,
    part: Part = ALL,
    *,
    is_cut: bool = True,
) -> StoredCandles:
    """Make the series that `request` asks for out of stored rows of `source_ms` length, all of `part`.

    The oldest candle that comes out is whole even if the read began within one: it lacks parts then. The
    first one of a life begins with its first part. `is_cut`: there may be more rows before the first one.
    """
    length_ms = request.length_ms
    values = rows.values
    told = _told_of(rows.told, part, source_ms)
    begin_ms = _begin_ms(rows.first_ms, told, part, source_ms, length_ms, is_cut=is_cut)
    if length_ms > source_ms:
        complete = resample(values, source_ms, length_ms, begin_ms)
        forming = _forming(values, rows, source_ms, length_ms, begin_ms or 0)
    else:
        complete, forming = values, rows.forming
    truncated = request.limit is not None and len(complete) >= request.limit
    if truncated and request.limit is not None:
        complete = complete[len(complete) - request.limit :]
    if forming is not None and (
        forming[0] >= part.owned(length_ms)[1] or not _wanted(forming, complete, request)
    ):
        forming = None
    first_ms = rows.first_ms
    if first_ms is not None:
        on = schema.floor_to if first_ms == begin_ms else schema.ceil_to
        first_ms = on(first_ms, length_ms)
    newest_ms = rows.newest_ms
    reach_ms = None if newest_ms is None else schema.floor_to(newest_ms + source_ms, length_ms)
    return StoredCandles(complete, truncated, first_ms, reach_ms, forming, told, part)


def _told_of(told: Interval | None, part: Part, source_ms: int) -> Interval | None:
    """What is told of a part of the series: of older lives nothing."""
    if told is None or part is ALL:
        return told
    first_ms, end_ms = part.owned(source_ms)
    mine = Interval(max(told.from_ms, first_ms), min(told.until_ms, end_ms))
    return mine if part.is_current and mine.from_ms < mine.until_ms else None


def _begin_ms(
    first_ms: int | None,
    told: Interval | None,
    part: Part,
    source_ms: int,
    length_ms: int,
    *,
    is_cut: bool,
) -> int | None:
    """Open time of the first row of a life, None where no beginning is known.

    That is the row of its listing or, where the exchange has none of that time, the first one that is
    stored. Only within the first candle: what lacks beyond may have been taken by a bucket's expiry.
    """
    if part.life is None or not part.life.listed_ms:
        return None
    listed_ms = part.life.first_ms(source_ms)
    is_sure = not is_cut and told is not None and told.from_ms <= listed_ms
    if first_ms is None or first_ms <= listed_ms or not is_sure:
        return listed_ms
    is_in_first = schema.floor_to(first_ms, length_ms) == part.life.first_ms(length_ms)
    return first_ms if is_in_first else listed_ms


def resample(values: Floats, source_ms: int, length_ms: int, begin_ms: int | None = None) -> Floats:
    """Return the candles of `length_ms` all of whose parts are in `values`.

    Open of the first part, close of the last, the highest high, the lowest low; volumes are summed
    without rounding in between. A candle with a part missing is left out. That in which the series begins,
    with its part at `begin_ms`, has none before.
    """
    if begin_ms is not None and begin_ms % length_ms:
        end_ms = schema.ceil_to(begin_ms, length_ms)
        split = int(np.searchsorted(values[:, 0], end_ms))
        head = values[:split]
        if len(head) == (end_ms - begin_ms) // source_ms and head[0, 0] == begin_ms:
            first = _joined(head.reshape(1, -1, values.shape[1]), length_ms)
            return np.vstack([first, resample(values[split:], source_ms, length_ms)])
    parts = length_ms // source_ms
    buckets = values[:, 0] // length_ms
    # Rows are ascending: a candle's parts lie next to each other.
    changes = np.flatnonzero(buckets[1:] != buckets[:-1]) + 1
    counts = np.diff(np.r_[0, changes, len(buckets)])
    width = values.shape[1]
    whole = values[np.repeat(counts == parts, counts)].reshape(-1, parts, width)
    return _joined(whole, length_ms)


def _joined(whole: Floats, length_ms: int) -> Floats:
    """Put candles together from their parts; `whole` has shape (candles, parts, columns)."""
    width = whole.shape[2]
    out = np.empty((len(whole), width))
    out[:, 0] = whole[:, 0, 0] // length_ms * length_ms
    out[:, 1] = whole[:, 0, 1]
    out[:, 2] = whole[:, :, 2].max(axis=1)
    out[:, 3] = whole[:, :, 3].min(axis=1)
    out[:, 4] = whole[:, -1, 4]
    for column in range(5, width):
        out[:, column] = [math.fsum(volumes) for volumes in whole[:, :, column].tolist()]
    return out


def _forming(
    values: Floats, rows: CandleRows, source_ms: int, length_ms: int, begin_ms: int
) -> tuple[float, ...] | None:
    """Put the forming candle together from its closed parts and the forming part.

    None where one before the newest is absent: what would come out is no candle. The series begins at
    `begin_ms`.
    """
    part = rows.forming
    if part is not None:
        newest_ms = int(part[0])
    elif rows.newest_ms is not None:
        newest_ms = rows.newest_ms
    else:
        return None
    start_ms = schema.floor_to(newest_ms, length_ms)
    first_ms = max(start_ms, begin_ms)
    parts = [tuple(row) for row in values[values[:, 0] >= first_ms].tolist()]
    if part is not None:
        parts.append(part)
    if not parts or len(parts) != (newest_ms - first_ms) // source_ms + 1:
        return None
    return (
        float(start_ms),
        parts[0][1],
        max(row[2] for row in parts),
        min(row[3] for row in parts),
        parts[-1][4],
        *(math.fsum(volumes) for volumes in zip(*(row[5:] for row in parts), strict=True)),
    )


def _wanted(forming: tuple[float, ...], complete: Floats, request: CandleRequest) -> bool:
    return (
        request.include_forming
        and (len(complete) == 0 or forming[0] > complete[-1, 0])
        and (request.since_ms is None or forming[0] >= request.since_ms)
        and (request.until_ms is None or forming[0] < request.until_ms)
    )


def mark_candles(
    minutes: Floats,
    length_ms: int,
    now_ms: int,
    begin_ms: int | None = None,
    part_ms: int = schema.MINUTE_MS,
) -> Floats:
    """Return candles of mark prices from rows as `Store.mark_minutes` gives them; volumes are 0.

    A candle is there if its first and, unless it is forming at `now_ms`, its last minute (or part of
    `part_ms`) have a mark price: its open and close are true then, its extremes are those of the points
    that are stored. The first minute of the one in which the series begins is that of `begin_ms`.
    """
    opens = minutes[:, 0] // length_ms * length_ms
    starts = np.flatnonzero(np.r_[True, opens[1:] != opens[:-1]][: len(opens)])
    ends = np.r_[starts[1:], len(opens)][: len(starts)] - 1
    out = np.zeros((len(starts), 6))
    out[:, 0] = opens[starts]
    out[:, 1] = minutes[starts, 1]
    if len(starts):
        out[:, 2] = np.maximum.reduceat(minutes[:, 2], starts)
        out[:, 3] = np.minimum.reduceat(minutes[:, 3], starts)
    out[:, 4] = minutes[ends, 4]
    closes = out[:, 0] + length_ms
    last_minute = minutes[ends, 0] == closes - part_ms
    firsts = out[:, 0] if begin_ms is None else np.maximum(out[:, 0], begin_ms)
    whole: Floats = out[(minutes[starts, 0] == firsts) & (last_minute | (closes > now_ms))]
    return whole


# --- completeness and age -------------------------------------------------------------------------


def newest_ms(found: StoredCandles, request: CandleRequest) -> int | None:
    """Open time of the newest closed candle: of those found, else of those stored outside the range.

    None when there is none to speak of.
    """
    if len(found.values):
        return int(found.values[-1, 0])
    open_range = request.since_ms is None and request.until_ms is None
    if open_range or found.first_ms is None or found.reach_ms is None:
        return None
    newest = found.reach_ms - request.length_ms
    return newest if newest >= found.first_ms else None


def missing(found: StoredCandles, request: CandleRequest, entry: CatalogRow, now_ms: int) -> Times:
    """Return the open times of closed candles that should be in the range and are not, ascending.

    The range starts with the oldest candle returned when the limit cut it, else at `since` or the
    first one that is stored. It ends at `until`, at the last whole candle of an ended pair, or with
    the newest stored; a live pair's candles are due `GRACE_MS` after their close, unless age does not
    matter to the caller. What opens before a forming candle that is returned has closed: it is due.
    """
    length_ms = request.length_ms
    if found.first_ms is None or found.reach_ms is None:
        return np.empty(0, np.int64)
    if found.truncated:
        start_ms = int(found.values[0, 0])
    else:
        start_ms = max(found.first_ms, schema.ceil_to(request.since_ms or 0, length_ms))
    if entry.listed_ms is not None:
        start_ms = max(start_ms, schema.floor_to(entry.listed_ms, length_ms))
    end_ms = _due_until(found.reach_ms, found, request, entry, now_ms)
    due = max(0, (end_ms - start_ms) // length_ms)
    have = found.values[:, 0].astype(np.int64)
    if len(have) >= due and np.count_nonzero((have >= start_ms) & (have < end_ms)) == due:
        return np.empty(0, np.int64)
    expected = np.arange(start_ms, end_ms, length_ms, dtype=np.int64)
    return np.setdiff1d(expected, have, assume_unique=True)


def _due_until(
    reach_ms: int, found: StoredCandles, request: CandleRequest, entry: CatalogRow, now_ms: int
) -> int:
    length_ms = request.length_ms
    end_ms = reach_ms
    if request.max_age_s is not None and not entry.has_ended(now_ms):
        end_ms = max(end_ms, schema.floor_to(now_ms - GRACE_MS, length_ms))
    if found.forming is not None:
        end_ms = max(end_ms, int(found.forming[0]))
    if entry.ended_ms is not None:
        end_ms = min(end_ms, schema.floor_to(entry.ended_ms, length_ms))
    if request.until_ms is not None:
        end_ms = min(end_ms, schema.ceil_to(request.until_ms, length_ms))
    return end_ms


def is_ready(
    found: StoredCandles, request: CandleRequest, entry: CatalogRow, candles: int, now_ms: int
) -> bool:
    """Whether the newest `candles` that are due are in an answer of as many, or all since the listing.

    What the exchange does not have either is not waited for.
    """
    if found.reach_ms is None or entry.dropped:
        return False
    due_ms = _due_until(found.reach_ms, found, request, entry, now_ms)
    from_ms = due_ms - candles * request.length_ms
    lacking = missing(found, request, entry, now_ms)
    lacking = lacking[lacking >= from_ms]
    if not never_come(found.told, lacking, request.length_ms).all():
        return False
    if found.first_ms is not None and found.first_ms <= from_ms:
        return True
    return short(found, request, entry) in (None, LISTED)


def listed_candle_ms(request: CandleRequest, entry: CatalogRow) -> int | None:
    """Open time of the first candle that the pair's listing lets be there; None if that is not known.

    The first one of the exchange opens before the listing. Put together from parts it is none, unless it
    is told which parts it has.
    """
    if entry.listed_ms is None:
        return None
    whole = request.timeframe in entry.timeframes or entry.lives
    on = schema.floor_to if whole else schema.ceil_to
    return on(entry.listed_ms, request.length_ms)


def short(found: StoredCandles, request: CandleRequest, entry: CatalogRow) -> Short | None:
    """Why the candles do not reach as far back as was asked; None where they do."""
    if found.truncated:
        return None
    if request.since_ms is not None and found.first_ms is not None:
        asked_ms = schema.ceil_to(request.since_ms, request.length_ms)
        if found.first_ms <= asked_ms:
            return None
    why = why_short(found.first_ms, listed_candle_ms(request, entry), found.told)
    # Older lives are not promised.
    return why if why == LISTED or found.part.is_current else HISTORY


# --- frames ---------------------------------------------------------------------------------------


def candle_frame(
    found: StoredCandles, attrs: Mapping[str, object], columns: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the candles as a frame, the forming one last; `columns` are those behind the volume."""
    forming = found.forming
    values = found.values if forming is None else np.vstack([found.values, forming])
    # One block of the frame's own memory, laid out as pandas keeps it: no further copy is made.
    block = np.array(values[:, 1:].T, order="C")
    names = _PRICES.append(pd.Index(columns)) if columns else _PRICES
    frame = pd.DataFrame(block.T, columns=names, copy=False)
    if "trades" in columns:
        frame["trades"] = frame["trades"].astype(np.int64)
    frame.insert(0, "date", dates(values[:, 0]))
    frame.attrs.update(attrs)
    return frame


def dates(times_ms: Floats | Times) -> pd.DatetimeIndex:
    """Return instants as Freqtrade has them."""
    instants = times_ms.astype(np.int64).view("datetime64[ms]")
    return pd.DatetimeIndex(instants, tz="UTC").as_unit(_UNIT)


def open_times(times_ms: Times) -> OpenTimes:
    """Return instants one by one, as whole numbers that JSON knows."""
    return OpenTimes(times_ms.tolist())


def funding_frame(
    rows: Mapping[str, FundingRow],
    intervals_h: Mapping[str, float | None],
    now_ms: int,
    attrs: Mapping[str, object],
) -> pd.DataFrame:
    """Return the newest running rates as a frame indexed by pair."""
    times_ms = np.array([row.time_ms for row in rows.values()], np.int64)
    settlements_ms = np.array([row.next_funding_time_ms for row in rows.values()], np.int64)
    columns: dict[str, Any] = {
        "rate": np.array([row.rate for row in rows.values()], np.float64),
        "settled_rate": np.array([row.settled_rate for row in rows.values()], np.float64),
        "next_funding_time": dates(settlements_ms),
        "time": dates(times_ms),
        "age_s": np.maximum(now_ms - times_ms, 0) / 1000,
        "interval_h": np.array([intervals_h[pair] for pair in rows], np.float64),
    }
    frame = pd.DataFrame(columns, index=pd.Index(list(rows), name="pair", dtype=object))
    frame.attrs.update(attrs)
    return frame


def mark_frame(values: Floats, attrs: Mapping[str, object]) -> pd.DataFrame:
    """Return candles of mark prices as a frame."""
    frame = pd.DataFrame({name: values[:, 1 + n].copy() for n, name in enumerate(_PRICES)})
    frame.insert(0, "date", dates(values[:, 0]))
    frame.attrs.update(attrs)
    return frame


def settled_frame(rows: Sequence[SettledRow], attrs: Mapping[str, object]) -> pd.DataFrame:
    """Return settlements as a frame with the columns date, rate and kind."""
    columns = {
        "date": dates(np.array([row.time_ms for row in rows], np.int64)),
        "rate": np.array([row.rate for row in rows], np.float64),
        # As pandas itself would take them; without rows it would not know.
        "kind": pd.Series([row.kind for row in rows], dtype="str"),
    }
    frame = pd.DataFrame(columns)
    frame.attrs.update(attrs)
    return frame


def sum_settlements(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what was paid at each time, out of a frame of `get_funding_history`: columns date and rate.

    A special settlement may share its minute with a regular one: both are paid, here as one sum.
    """
    summed = frame[["date", "rate"]].groupby("date", as_index=False).sum()
    summed.attrs.update(frame.attrs)
    return summed
