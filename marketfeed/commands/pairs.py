"""The kept choice of pairs: what stands in it, and taking a pair out. The collector may run meanwhile."""

import difflib
import time
from pathlib import Path

import msgspec

from marketfeed import schema
from marketfeed.errors import MarketfeedError, SettingsError
from marketfeed.journal.documents import change_document
from marketfeed.journal.view import JournalView
from marketfeed.pairs.absent import ABSENT_PAIRS
from marketfeed.pairs.listing import chosen_name
from marketfeed.records import CatalogEntry
from marketfeed.settings.load import origin_of
from marketfeed.settings.model import ExchangeSettings, Settings, TopPairs


class PairChoice(msgspec.Struct, frozen=True):
    """One pair that is to be collected, or was. Times are exchange time (ms).

    `chosen`: it is in the kept choice, or the settings ask for it. `since_ms` is None until something of it
    is stored. `missing_since_ms`: since when exchangeInfo has no row of it.
    """

    pair: str
    chosen: bool
    since_ms: int | None
    ended_ms: int | None
    dropped: bool
    missing_since_ms: int | None


class PairChoices(msgspec.Struct, frozen=True):
    """What `marketfeed pairs` shows. `setting` is exchange.pairs, as the environment would have it."""

    setting: str
    pairs: list[PairChoice]


class Dropped(msgspec.Struct, frozen=True):
    """A pair that was taken out. `left` are still chosen; `collector` names the process, "" if none runs."""

    pair: str
    left: int
    collector: str


def show_pairs(settings: Settings) -> PairChoices:
    """What is chosen, and what is or was collected, ordered by pair. Raises JournalError."""
    wanted = settings.exchange.pairs
    view = JournalView(settings.journal.path)
    entries = {entry.pair: entry for entry in view.catalog()}
    missing = msgspec.json.decode(view.document(ABSENT_PAIRS) or b"{}", type=dict[str, int])
    if isinstance(wanted, TopPairs):
        body = view.document(_kept_choice(settings.exchange, wanted))
        chosen = frozenset(msgspec.json.decode(body or b"[]", type=list[str]))
    elif wanted == "all":
        chosen = frozenset(pair for pair, entry in entries.items() if not entry.dropped)
    else:
        chosen = frozenset(wanted)
    return PairChoices(
        _setting(settings),
        [
            _choice(pair, pair in chosen, entries.get(pair), missing.get(pair))
            for pair in sorted(chosen | entries.keys())
        ],
    )


def _kept_choice(exchange: ExchangeSettings, wanted: TopPairs) -> str:
    return chosen_name(exchange.quote, wanted.count, exchange.contracts)


def _choice(
    pair: str, chosen: bool, entry: CatalogEntry | None, missing_since_ms: int | None
) -> PairChoice:
    if entry is None:
        return PairChoice(pair, chosen, None, None, False, missing_since_ms)
    return PairChoice(pair, chosen, entry.since_ms, entry.ended_ms, entry.dropped, missing_since_ms)


def _setting(settings: Settings) -> str:
    wanted = settings.exchange.pairs
    if isinstance(wanted, TopPairs):
        return f"top:{wanted.count}"
    return wanted if isinstance(wanted, str) else ",".join(wanted)


def drop_pair(settings: Settings, config: Path | None, pair: str) -> Dropped:
    """Take a pair out of the kept choice; a running collector lets go of it at its next look.

    `config` is the settings file that the user has named. Raises SettingsError where the settings name the
    pairs, or there is no such pair in the choice; JournalError.
    """
    if not schema.is_pair(pair):
        raise SettingsError(
            f"--drop: found {pair!r}, expected a pair such as {schema.PAIR_EXAMPLE}"
        )
    wanted = settings.exchange.pairs
    if not isinstance(wanted, TopPairs):
        raise SettingsError(_where_to_change(wanted, config, pair))
    left: list[str] = []

    def without(body: bytes | None) -> bytes:
        chosen = msgspec.json.decode(body or b"[]", type=list[str])
        if not chosen:
            raise MarketfeedError(
                f"journal {settings.journal.path}: no pairs have been chosen yet for {_setting(settings)}: "
                "the first start of the collector does that"
            )
        if pair not in chosen:
            near = difflib.get_close_matches(pair, chosen, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise SettingsError(
                f"--drop: found {pair}, expected one of the {len(chosen)} chosen pairs{hint}"
            )
        left.extend(one for one in chosen if one != pair)
        if not left:
            raise SettingsError(f"--drop: {pair} is the only pair that is left")
        return msgspec.json.encode(left)

    name = _kept_choice(settings.exchange, wanted)
    collector = change_document(settings.journal.path, name, without, int(time.time() * 1000))
    return Dropped(pair, len(left), collector)


def _where_to_change(wanted: tuple[str, ...] | str, config: Path | None, pair: str) -> str:
    """What to change instead, when not the collector has chosen the pairs."""
    key = ("exchange", "pairs")
    where = origin_of(key, config)
    if isinstance(wanted, str):
        return (
            f"exchange.pairs: found all, which collects what the exchange lists ({where}); "
            "to leave a pair out, write the others as a list there and restart the collector"
        )
    if pair not in wanted:
        return (
            f"--drop: found {pair}, expected one of the {len(wanted)} of exchange.pairs ({where})"
        )
    line = origin_of((*key, wanted.index(pair)), config)
    # A variable goes before the file, whose lines mean nothing then.
    at = line if line and not where.startswith("environment") else where
    return f"exchange.pairs is a list: take {pair} out of it ({at}) and restart the collector"
