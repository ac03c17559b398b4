"""Candles for one request, out of any store: read, resample, judge age and completeness."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd

from marketfeed import schema
from reader import frames
from reader.arguments import CandleRequest, timestamp
from reader.collected import of_lives
from reader.coverage import never_come
from reader.errors import GapError, StaleDataError, UnknownTimeframeError, listing
from reader.life import OPEN_MS, LifeRow, Part, asked_across, before, current
from reader.rows import CandleQuery, CandleRows, CatalogRow
from reader.stores.store import Store

_END_MS: Final = 2**62
_NO_ROWS: Final = np.empty((0, 6))


def sources(entries: Iterable[CatalogRow], timeframe: object) -> dict[str, list[str]]:
    """Return the stored timeframes from which `timeframe` is answered, each with its pairs.

    Raises UnknownTimeframeError, naming those that can be answered, when one pair lacks it.
    """
    if not isinstance(timeframe, str) or timeframe not in schema.TIMEFRAMES_MS:
        entry = next(iter(entries), None)
        if entry is not None:
            raise _unknown_timeframe(entry, timeframe)
        raise _no_timeframe(timeframe)
    found: dict[str, list[str]] = {}
    for entry in entries:
        source = schema.resampling_source(timeframe, entry.timeframes)
        if source is None:
            raise _unknown_timeframe(entry, timeframe)
        found.setdefault(source, []).append(entry.pair)
    return found


def length_ms(timeframe: object) -> int:
    """Return the length of a timeframe. Raises UnknownTimeframeError."""
    if isinstance(timeframe, str) and timeframe in schema.TIMEFRAMES_MS:
        return schema.TIMEFRAMES_MS[timeframe]
    raise _no_timeframe(timeframe)


def _no_timeframe(timeframe: object) -> UnknownTimeframeError:
    valid = tuple(schema.TIMEFRAMES_MS)
    return UnknownTimeframeError(
        f"timeframe {timeframe!r} is unknown; there are {', '.join(valid)}", timeframe, valid
    )


def sources_of_any(entries: Sequence[CatalogRow], timeframe: object) -> dict[str, list[str]]:
    """Return the same, leaving out pairs that lack the timeframe unless all of them do."""
    fitting = [
        entry
        for entry in entries
        if isinstance(timeframe, str)
        and timeframe in schema.TIMEFRAMES_MS
        and schema.resampling_source(timeframe, entry.timeframes) is not None
    ]
    return sources(fitting or entries, timeframe)


def newest(store: Store, timeframe: str) -> dict[str, int]:
    """Return pair -> open time (ms) of its current life's newest closed candle, be it put together."""
    catalog = store.catalog()
    owned = {row.pair: current(row.lives) for row in catalog}
    groups = sources_of_any(catalog, timeframe)
    length_ms = schema.TIMEFRAMES_MS[timeframe]
    answer: dict[str, int] = {}
    for source, members in groups.items():
        opens_ms = store.newest(source)
        source_ms = schema.TIMEFRAMES_MS[source]
        for pair in members:
            if pair in opens_ms:
                first_ms, end_ms = owned[pair].owned(length_ms)
                end_ms = min(end_ms, schema.floor_to(opens_ms[pair] + source_ms, length_ms))
                if end_ms > first_ms:
                    answer[pair] = end_ms - length_ms
    return answer


def _unknown_timeframe(entry: CatalogRow, timeframe: object) -> UnknownTimeframeError:
    valid = [
        name
        for name in schema.TIMEFRAMES_MS
        if schema.resampling_source(name, entry.timeframes) is not None
    ]
    resampled = [name for name in valid if name not in entry.timeframes]
    return UnknownTimeframeError(
        f"timeframe {timeframe!r} of {entry.pair} is neither collected nor resampled; "
        f"collected: {', '.join(entry.timeframes) or 'none'}; "
        f"resampled from these: {', '.join(resampled) or 'none'}",
        timeframe,
        valid,
    )


def read(
    store: Store, collected: Mapping[str, CatalogRow], request: CandleRequest, now_ms: int
) -> tuple[Mapping[str, CatalogRow], dict[str, frames.StoredCandles]]:
    """Read what `request` asks for of each pair, and of which rows of the catalog that is.

    The newest close of all pairs is fixed first, and every pair is cut there: what closes while pair after
    pair is read is in none of the frames.
    """
    cut_ms = _last_close(store, collected, request) if len(collected) > 1 else OPEN_MS

    def by(entries: Mapping[str, CatalogRow]) -> dict[str, frames.StoredCandles]:
        found: dict[str, frames.StoredCandles] = {}
        for source, members in sources(entries.values(), request.timeframe).items():
            parts = {
                pair: before(entries[pair].lives, request.until_ms, request.length_ms)
                for pair in members
            }
            found.update(read_series(store, parts, source, request, cut_ms))
        return found

    def newest_ms(found: Mapping[str, frames.StoredCandles]) -> dict[str, int]:
        opens = {
            pair: one.values[-1] if one.forming is None else one.forming
            for pair, one in found.items()
            if one.forming is not None or len(one.values)
        }
        return {pair: min(int(row[0]) + request.length_ms, now_ms) for pair, row in opens.items()}

    return of_lives(store, collected, by, newest_ms)


def _last_close(store: Store, collected: Mapping[str, CatalogRow], request: CandleRequest) -> int:
    closes_ms = [
        store.last_close(members, source)
        for source, members in sources(collected.values(), request.timeframe).items()
    ]
    return max(filter(None, closes_ms), default=OPEN_MS)


def read_series(
    store: Store,
    parts: Mapping[str, Part],
    source: str,
    request: CandleRequest,
    cut_ms: int = OPEN_MS,
) -> dict[str, frames.StoredCandles]:
    """Read the series that `request` asks for, of each pair a part, from the stored timeframe `source`.

    As if nothing that closes after `cut_ms` were stored.
    """
    source_ms = schema.TIMEFRAMES_MS[source]
    length_ms = request.length_ms
    per_candle = length_ms // source_ms
    start_ms = schema.ceil_to(request.since_ms or 0, length_ms)
    end_ms = _END_MS if request.until_ms is None else schema.ceil_to(request.until_ms, length_ms)
    asked_rows = request.limit
    if asked_rows is not None and per_candle > 1:
        # One more candle, for the parts of the one that is forming.
        asked_rows = (asked_rows + 1) * per_candle
    found: dict[str, frames.StoredCandles] = {}
    across_ms: dict[str, int] = {}
    # Of all pairs at first as if nothing else were stored: nearly always there is nothing.
    left = dict.fromkeys(
        parts, (0, cut_ms if cut_ms == OPEN_MS else schema.floor_to(cut_ms, source_ms))
    )
    while left:
        again: dict[str, tuple[int, int]] = {}
        short: dict[str, tuple[int, int]] = {}
        for own, members in _alike(left).items():
            query = CandleQuery(
                members,
                source,
                max(start_ms, own[0]),
                min(end_ms, own[1]),
                asked_rows,
                request.include_forming,
                length_ms,
                request.columns,
                own,
            )
            for pair, rows in zip(members, store.candles(query), strict=True):
                first_ms, part_end_ms = parts[pair].owned(source_ms)
                if own[1] > part_end_ms and (rows.newest_ms or 0) >= part_end_ms:
                    again[pair] = (own[0], part_end_ms)
                    continue
                if own[0] < first_ms and rows.first_ms is not None and rows.first_ms < first_ms:
                    if len(rows.values) and rows.values[0, 0] < first_ms:
                        across_ms[pair] = int(rows.values[0, 0])
                    again[pair] = (first_ms, own[1])
                    continue
                is_cut = len(rows.values) == asked_rows
                mine = _of_own(rows, first_ms, part_end_ms)
                series = frames.series(mine, source_ms, request, parts[pair], is_cut=is_cut)
                if per_candle > 1 and not series.truncated and is_cut:
                    short[pair] = own  # candles were left out for a missing part: read further back
                else:
                    found[pair] = series
        if again:
            left = again | short
            continue
        left = short
        if asked_rows is not None:
            asked_rows *= 2
    return {
        pair: replace(found[pair], across_ms=None if found[pair].truncated else across_ms.get(pair))
        for pair in parts
    }


def _alike(own: Mapping[str, tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """The pairs of each range, in their order: nearly always there is one range."""
    members: dict[tuple[int, int], list[str]] = {}
    for pair, part in own.items():
        members.setdefault(part, []).append(pair)
    return members


def _of_own(rows: CandleRows, first_ms: int, end_ms: int) -> CandleRows:
    """The rows without a forming candle of another life."""
    if rows.forming is None or first_ms <= rows.forming[0] < end_ms:
        return rows
    return replace(rows, forming=None)


def judge(
    found: dict[str, frames.StoredCandles],
    collected: Mapping[str, CatalogRow],
    request: CandleRequest,
    source: str,
    now_ms: int,
    *,
    young_ok: bool,
) -> dict[str, pd.DataFrame]:
    """Return the frames of `found`, in the order of `collected`, with their age and what is missing.

    The rows in `found` are gone then.

    With `young_ok` a pair that is too young for a candle gives an empty frame (age_s is None).

    Raises StaleDataError (naming every stale pair) and, where the request is strict, GapError.
    """
    entries = {pair: row.of(found[pair].part) for pair, row in collected.items()}
    ages = {pair: _age_s(found[pair], request, now_ms) for pair in entries}
    stale = {
        pair: age_s
        for pair, age_s in ages.items()
        if not entries[pair].is_over(now_ms)
        and _is_stale(age_s, request, now_ms)
        and not (young_ok and age_s == math.inf and _is_young(entries[pair], request, now_ms))
    }
    if stale:
        raise _stale(stale, request)
    answer: dict[str, pd.DataFrame] = {}
    gaps: dict[str, frames.OpenTimes] = {}
    breaks: dict[str, list[LifeRow]] = {}
    for pair, entry in entries.items():
        series = found[pair]
        lives = asked_across(collected[pair].lives, series.part, series.across_ms)
        if series.across_ms is not None:
            breaks[pair] = lives
        missing_ms = frames.missing(series, request, entry, now_ms)
        if len(missing_ms):
            gaps[pair] = frames.open_times(missing_ms)
        never = never_come(series.told, missing_ms, request.length_ms)
        answer[pair] = frames.candle_frame(
            series,
            {
                "pair": pair,
                "timeframe": request.timeframe,
                "source": source,
                "age_s": None if ages[pair] == math.inf else ages[pair],
                "missing": gaps.get(pair, []),
                "absent": frames.open_times(missing_ms[never]) if never.any() else [],
                "short": frames.short(series, request, entry),
                "forming": series.forming is not None,
                "lives": [list(life) for life in lives],
            },
            request.columns,
        )
        # A frame has its own memory: all pairs' rows beside all frames would be twice what is asked for.
        found[pair] = replace(series, values=_NO_ROWS)
    if (gaps or breaks) and request.strict:
        raise _gap(gaps, breaks, request)
    return answer


def _age_s(series: frames.StoredCandles, request: CandleRequest, now_ms: int) -> float:
    newest_ms = frames.newest_ms(series, request)
    if newest_ms is None:
        return math.inf
    return max(0, now_ms - newest_ms - request.length_ms) / 1000


def _is_stale(age_s: float, request: CandleRequest, now_ms: int) -> bool:
    if request.max_age_s is None:
        return False
    if age_s == math.inf:
        return True  # not one candle: there is nothing that could be returned in good faith
    reaches_now = request.until_ms is None or request.until_ms > now_ms
    return reaches_now and age_s > request.max_age_s


def _is_young(entry: CatalogRow, request: CandleRequest, now_ms: int) -> bool:
    """Whether a pair was listed so lately that no candle of it can be there yet."""
    first_ms = frames.listed_candle_ms(request, entry)
    if first_ms is None:
        return False
    return now_ms < first_ms + request.length_ms + frames.GRACE_MS


def _stale(ages: Mapping[str, float], request: CandleRequest) -> StaleDataError:
    pairs = listing(
        f"{pair} " + ("has no candle yet" if age_s == math.inf else f"{age_s:.1f} s")
        for pair, age_s in ages.items()
    )
    return StaleDataError(
        f"stale {request.timeframe} candles, {request.max_age_s:g} s after the close are allowed: "
        f"{pairs}. Does the collector run (marketfeed status)? max_age_s=None takes them as they are",
        ages,
    )


def _gap(
    gaps: Mapping[str, Sequence[int]],
    breaks: Mapping[str, Sequence[LifeRow]],
    request: CandleRequest,
) -> GapError:
    found = []
    if gaps:
        pairs = listing(
            f"{pair} {len(missing)}, first {timestamp(missing[0]).isoformat()}"
            for pair, missing in gaps.items()
        )
        found.append(f"{request.timeframe} candles missing: {pairs}")
    if breaks:
        pairs = listing(
            f"{pair} until {timestamp(older.end_ms).isoformat()}"
            for pair, (*_, older, _) in breaks.items()
        )
        found.append(f"asked for with candles of another contract of the same name: {pairs}")
    every = {
        pair: [timestamp(ms) for ms in gaps.get(pair, ())]
        for pair in dict.fromkeys([*gaps, *breaks])
    }
    lives = {pair: [list(life) for life in known] for pair, known in breaks.items()}
    return GapError("; ".join(found), request.timeframe, every, lives)
