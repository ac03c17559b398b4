"""What is collected, asked of a store: the rows of pairs, and what callers get of them."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from reader.arguments import timestamp
from reader.errors import UnknownPairError, listing
from reader.life import LifeRow, may_be_another
from reader.rows import CatalogRow
from reader.stores.store import Store
from reader.values import Life, PairInfo

T = TypeVar("T")


def entries(store: Store, names: Sequence[str], *, afresh: bool = False) -> dict[str, CatalogRow]:
    """Return the catalog's rows in the order of `names`, which are well-formed pairs; read `afresh` or not.

    Raises UnknownPairError.
    """
    rows = {row.pair: row for row in store.catalog(names, afresh=afresh)}
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


def of_lives(
    store: Store,
    entries_: Mapping[str, CatalogRow],
    read: Callable[[Mapping[str, CatalogRow]], T],
    newest_ms: Callable[[T], Mapping[str, int]],
) -> tuple[Mapping[str, CatalogRow], T]:
    """Read by the catalog's rows, and again while these turn out to be older than what was read.

    `newest_ms` gives when the newest of what was read was over, by pair. Where the lives that are known
    may not reach so far, they are looked at afresh: behind an end and a listing that are not known yet
    there would be another contract's rows. Returns what was read, and by which rows.
    """
    while True:
        found = read(entries_)
        if not any(
            may_be_another(entries_[pair].lives, entries_[pair].lives_to_ms, at_ms)
            for pair, at_ms in newest_ms(found).items()
        ):
            return entries_, found
        again = entries(store, list(entries_), afresh=True)
        if all(again[pair].lives == row.lives for pair, row in entries_.items()):
            return entries_, found
        entries_ = again


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
