"""The newest mark prices and funding rates, and whether they are fresh enough."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from reader.arguments import timestamp
from reader.errors import StaleDataError, listing
from reader.rows import FundingRow, MarkRow
from reader.values import FundingRate, MarkPrice

PURE = True

MARK_PRICE_MAX_AGE_S: Final = 30.0
"""Default of `max_age_s`: ten of the stream's own steps."""

FUNDING_RATE_MAX_AGE_S: Final = 150.0
"""Default of `max_age_s`: running funding rates lie on a grid of up to a minute."""


def refuse_stale(
    what: str,
    pairs: Sequence[str],
    rows: Mapping[str, MarkRow] | Mapping[str, FundingRow],
    max_age_s: float | None,
    now_ms: int,
    *,
    absent_ok: bool,
) -> None:
    """Raise StaleDataError, naming the pairs, for those that are `stale`."""
    ages_s = stale(pairs, rows, max_age_s, now_ms, absent_ok=absent_ok)
    if not ages_s:
        return
    found = listing(
        f"{pair} has none yet" if age_s == math.inf else f"{pair} {age_s:.1f} s old"
        for pair, age_s in ages_s.items()
    )
    allowed = "" if max_age_s is None else f" ({max_age_s:g} s are allowed)"
    raise StaleDataError(
        f"stale {what}{allowed}: {found}. Does the collector run (marketfeed status)? "
        "max_age_s=None takes the last one as it is",
        ages_s,
    )


def stale(
    pairs: Sequence[str],
    rows: Mapping[str, MarkRow] | Mapping[str, FundingRow],
    max_age_s: float | None,
    now_ms: int,
    *,
    absent_ok: bool,
) -> dict[str, float]:
    """The age (s) of each row that is older than `max_age_s`, infinite for an absent one.

    `max_age_s` None lets every age pass, and with `absent_ok` absence as well.
    """
    ages_s: dict[str, float] = {}
    for pair in pairs:
        row = rows.get(pair)
        if row is None:
            if max_age_s is not None or not absent_ok:
                ages_s[pair] = math.inf
        elif max_age_s is not None and _age_s(row, now_ms) > max_age_s:
            ages_s[pair] = _age_s(row, now_ms)
    return ages_s


def mark_price(row: MarkRow, now_ms: int) -> MarkPrice:
    """Return the row as callers get it."""
    age_s = _age_s(row, now_ms)
    return MarkPrice(row.mark_price, row.pair, row.index_price, timestamp(row.time_ms), age_s)


def funding_rate(row: FundingRow, now_ms: int, interval_h: float | None) -> FundingRate:
    """Return the row as callers get it."""
    return FundingRate(
        row.rate,
        row.pair,
        row.settled_rate,
        timestamp(row.next_funding_time_ms),
        timestamp(row.time_ms),
        _age_s(row, now_ms),
        interval_h,
    )


def _age_s(row: MarkRow | FundingRow, now_ms: int) -> float:
    return max(0, now_ms - row.time_ms) / 1000
