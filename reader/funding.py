"""Settlements and funding intervals, asked of a store and judged: `MarketReader` answers with them."""

from collections.abc import Mapping

import pandas as pd

from marketfeed import schema
from reader import frames, settlements
from reader.arguments import MAX_TIME_MS
from reader.collected import of_lives
from reader.life import Part, asked_across, before
from reader.rows import CatalogRow, FundingRow
from reader.stores.store import Store


def asked(
    store: Store,
    entries: Mapping[str, CatalogRow],
    since_ms: int | None,
    until_ms: int | None,
    now_ms: int,
) -> pd.DataFrame:
    """`history` of the only pair of `entries`, whose lives reach as far as its settlements."""
    (pair,) = entries
    end_ms = MAX_TIME_MS if until_ms is None else until_ms

    def by(rows: Mapping[str, CatalogRow]) -> pd.DataFrame:
        part = before(rows[pair].lives, until_ms, schema.MINUTE_MS)
        return history(store, rows[pair], part, since_ms, end_ms, now_ms)

    def newest_ms(found: pd.DataFrame) -> dict[str, int]:
        return {pair: found["date"].iloc[-1].value // 1_000_000} if len(found) else {}

    _, found = of_lives(store, entries, by, newest_ms)
    return found


def history(
    store: Store, entry: CatalogRow, part: Part, start_ms: int | None, end_ms: int, now_ms: int
) -> pd.DataFrame:
    """The settlements of a part of a pair's series with start <= time < end (ms, None: all); which lack."""
    pair = entry.pair
    begin_ms, next_ms = part.events()
    end_ms = min(end_ms, next_ms)
    asked_ms = max(start_ms or 0, begin_ms)
    # Before the rows: what is stored in between is not taken for missing.
    known_ms = store.settled_to([pair]).get(pair)
    first_ms = max(asked_ms, known_ms or 0, now_ms - settlements.KNOWN_FOR_MS)
    # What stood just before: at the time itself the next one is announced.
    announced = store.announced({pair: first_ms - 1})[pair]
    every = store.settled_rates(pair, start_ms or 0, end_ms)
    rows = [row for row in every if row.time_ms >= asked_ms]
    older = every[: len(every) - len(rows)]
    if start_ms is None and rows:
        first_ms = max(first_ms, rows[0].time_ms)
    ended_ms = entry.of(part).ended_ms
    if ended_ms is not None:
        end_ms = min(end_ms, ended_ms)
    # A special settlement in the place of an announced one: the collector waits for that, and tells.
    times_ms = {row.time_ms for row in rows if known_ms is None or row.kind == schema.REGULAR}
    lacking = settlements.lacking(announced, times_ms, known_ms, now_ms)
    lives = asked_across(entry.lives, part, older[0].time_ms if older else None)
    attrs = {
        "pair": pair,
        "source": store.source,
        "missing": [at for at in lacking if first_ms <= at < end_ms],
        "settled_to": known_ms,
        "lives": [list(life) for life in lives],
    }
    return frames.settled_frame(rows, attrs)


def intervals_h(store: Store, rows: Mapping[str, FundingRow]) -> dict[str, float | None]:
    """Hours from the last settlement to the next one of each pair, None where that is not sure."""
    known_ms = store.settled_to(list(rows))
    # It was changed since, or has passed and is not stored yet: as of all pairs, soon after a settlement.
    since_ms = {
        pair: row.regular_ms
        for pair, row in rows.items()
        if row.regular_ms is not None and row.then_next_ms != row.next_funding_time_ms
    }
    announced = store.announced(since_ms)
    found: dict[str, float | None] = {}
    for pair, row in rows.items():
        since, between = since_ms.get(pair), []
        if since is not None:
            times_ms = settlements.passed(announced[pair], row.time_ms)
            between = [at for at in times_ms if at > since]
        found[pair] = settlements.interval_h(row, known_ms.get(pair), between)
    return found
