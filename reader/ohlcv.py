"""Candles for one request, out of any store: read, resample, judge age and completeness."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pandas as pd

from marketfeed import schema
from reader import frames
from reader.arguments import CandleRequest
from reader.coverage import never_come
from reader.errors import GapError, StaleDataError, UnknownTimeframeError, listing
from reader.rows import CandleQuery, CatalogRow
from reader.stores.store import Store

_END_MS: Final = 2**62


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


def read_series(
    store: Store, pairs: Sequence[str], source: str, request: CandleRequest
) -> dict[str, frames.StoredCandles]:
    """Read the series that `request` asks for from the stored timeframe `source`."""
    source_ms = schema.TIMEFRAMES_MS[source]
    length_ms = request.length_ms
    parts = length_ms // source_ms
    start_ms = schema.ceil_to(request.since_ms or 0, length_ms)
    end_ms = _END_MS if request.until_ms is None else schema.ceil_to(request.until_ms, length_ms)
    asked_rows = request.limit
    if asked_rows is not None and parts > 1:
        # One more candle, for the parts of the one that is forming.
        asked_rows = (asked_rows + 1) * parts
    found: dict[str, frames.StoredCandles] = {}
    left = list(pairs)
    while left:
        query = CandleQuery(
            left,
            source,
            start_ms,
            end_ms,
            asked_rows,
            request.include_forming,
            length_ms,
            request.columns,
        )
        short: list[str] = []
        for pair, rows in zip(left, store.candles(query), strict=True):
            series = frames.series(rows, source_ms, request)
            if parts > 1 and not series.truncated and len(rows.values) == asked_rows:
                short.append(pair)  # candles were left out for a missing part: read further back
            else:
                found[pair] = series
        left = short
        if asked_rows is not None:
            asked_rows *= 2
    return found


def judge(
    found: Mapping[str, frames.StoredCandles],
    entries: Mapping[str, CatalogRow],
    request: CandleRequest,
    source: str,
    now_ms: int,
    *,
    young_ok: bool,
) -> dict[str, pd.DataFrame]:
    """Return the frames of `found`, in the order of `entries`, with their age and what is missing.

    With `young_ok` a pair that is too young for a candle gives an empty frame (age_s is infinite).

    Raises StaleDataError (naming every stale pair) and, where the request is strict, GapError.
    """
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
    for pair, entry in entries.items():
        series = found[pair]
        missing_ms = frames.missing(series, request, entry, now_ms)
        if len(missing_ms):
            gaps[pair] = frames.timestamps(missing_ms)
        never = never_come(series.told, missing_ms, request.length_ms)
        answer[pair] = frames.candle_frame(
            series,
            {
                "pair": pair,
                "timeframe": request.timeframe,
                "source": source,
                "age_s": ages[pair],
                "missing": gaps.get(pair, []),
                "absent": frames.timestamps(missing_ms[never]) if never.any() else [],
                "short": frames.short(series, request, entry),
                "forming": series.forming is not None,
            },
            request.columns,
        )
    if gaps and request.strict:
        raise _gap(gaps, request)
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


def _gap(gaps: Mapping[str, Sequence[pd.Timestamp]], request: CandleRequest) -> GapError:
    pairs = listing(
        f"{pair} {len(missing)}, first {missing[0].isoformat()}" for pair, missing in gaps.items()
    )
    return GapError(f"{request.timeframe} candles missing: {pairs}", request.timeframe, gaps)
