"""Mark prices and running rates of pairs, each of one life alone, asked of a store."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from reader import arguments, latest
from reader.arguments import MaxAge
from reader.errors import nothing_live
from reader.life import current
from reader.rows import CatalogRow, FundingRow, MarkRow
from reader.stores.store import Store

_Row = TypeVar("_Row", MarkRow, FundingRow)


class Rates(NamedTuple):
    """Running rates by pair, and the live pairs of which the exchange gives none."""

    rows: Mapping[str, FundingRow]
    without: tuple[str, ...]


def mark_prices(store: Store, entries: Mapping[str, CatalogRow]) -> dict[str, MarkRow]:
    """The newest mark price of each pair."""
    return _of_current(store.mark_prices(list(entries)), entries)


def funding_rates(store: Store, entries: Mapping[str, CatalogRow]) -> dict[str, FundingRow]:
    """The newest running rate of each pair. The settled one beside it may be none, of a new life."""
    rows = _of_current(store.funding_rates(list(entries)), entries)
    for pair, row in rows.items():
        if row.settled_ms is not None and row.settled_ms < _begun_ms(entries[pair]):
            rows[pair] = row._replace(
                settled_rate=None, regular_ms=None, then_ms=None, then_next_ms=None
            )
    return rows


def live_rates(store: Store, max_age_s: MaxAge, now_ms: int) -> Rates:
    """The newest running rates of all pairs that have not ended.

    Left out is a pair that the exchange gives no running rate of: there is a fresh mark price, and no rate
    that would be fresh by default. Both come in one message. Raises StaleDataError for all others whose rate
    is absent or too old, and where no pair is left.
    """
    limit_s = arguments.max_age(max_age_s, latest.FUNDING_RATE_MAX_AGE_S)
    catalog = store.catalog()
    live = {row.pair: row for row in catalog if not row.of(current(row.lives)).has_ended(now_ms)}
    if not live:
        raise nothing_live(collected=bool(catalog))
    rows = funding_rates(store, live)
    without: tuple[str, ...] = ()
    if limit_s is not None:
        least_s = max(limit_s, latest.FUNDING_RATE_MAX_AGE_S)
        late = latest.stale(list(live), rows, least_s, now_ms, absent_ok=True)
        if 0 < len(late) < len(live):
            marks = mark_prices(store, {pair: live[pair] for pair in late})
            dead = latest.stale(
                list(late), marks, latest.MARK_PRICE_MAX_AGE_S, now_ms, absent_ok=False
            )
            without = tuple(pair for pair in late if pair not in dead)
    wanted = [pair for pair in live if pair not in without]
    latest.refuse_stale("funding rate", wanted, rows, limit_s, now_ms, absent_ok=True)
    return Rates({pair: rows[pair] for pair in wanted if pair in rows}, without)


def _of_current(rows: Mapping[str, _Row], entries: Mapping[str, CatalogRow]) -> dict[str, _Row]:
    return {pair: row for pair, row in rows.items() if row.time_ms >= _begun_ms(entries[pair])}


def _begun_ms(entry: CatalogRow) -> int:
    return current(entry.lives).events()[0]
