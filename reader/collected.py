"""What is collected, asked of a store: the rows of pairs, and what callers get of them."""

import difflib
from collections.abc import Sequence

from reader.arguments import timestamp
from reader.errors import UnknownPairError, listing
from reader.life import LifeRow
from reader.rows import CatalogRow
from reader.stores.store import Store
from reader.values import Life, PairInfo


def entries(store: Store, names: Sequence[str]) -> dict[str, CatalogRow]:
    """Return the catalog's rows in the order of `names`, which are well-formed pairs.

    Raises UnknownPairError.
    """
    rows = {row.pair: row for row in store.catalog(names)}
    unknown = [name for name in names if name not in rows]
    if unknown:
        known = [row.pair for row in store.catalog()]
        close = difflib.get_close_matches(unknown[0], known, 3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise UnknownPairError(
            f"not collected: {listing(unknown)}{hint} ({len(known)} pairs are collected, "
            "pairs() names them)",
            unknown[0],
            close,
        )
    return {name: rows[name] for name in names}


def info(entry: CatalogRow) -> PairInfo:
    """Return the row as callers get it."""
    return PairInfo(
        entry.pair,
        () if entry.dropped else entry.timeframes,
        timestamp(entry.since_ms),
        None if entry.ended_ms is None else timestamp(entry.ended_ms),
    )


def told(row: LifeRow) -> Life:
    """Return the row as callers get it."""
    return Life(
        row.symbol,
        timestamp(row.listed_ms) if row.listed_ms else None,
        None if row.ended_ms is None else timestamp(row.ended_ms),
    )
