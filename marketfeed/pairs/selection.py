"""Selects the pairs that the settings ask for from what the exchange lists."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import (
    CONTRACT_TYPES,
    PERPETUAL,
    ExchangeInfo,
    Instrument,
    Selection,
    select_all,
    select_named,
    select_top,
)
from marketfeed.errors import ExchangeError
from marketfeed.settings.model import ExchangeSettings, TopPairs

MAY_LACK: Final = 0.1
"""Share of the lasting perpetuals that may not trade, or have no ticker, when the top are chosen; or one."""
WITH_VOLUME: Final = 0.5
"""Share of those that trade that must have a 24 h volume then."""


NONE_COLLECTED: Final = "none of the configured pairs is traded and of a type in exchange.contracts"


class Listing(msgspec.Struct, frozen=True):
    """What to collect, and the exchangeInfo it was taken from, corrected by what is known of lives."""

    selection: Selection
    info: ExchangeInfo


async def select(
    settings: ExchangeSettings,
    rest: BinanceRest,
    info: ExchangeInfo,
    known: Mapping[str, Instrument] = MappingProxyType({}),
) -> Selection:
    """Select what the settings ask for; asks for 24 h volumes where that needs them.

    `known` is what is known of pairs that were collected before, whatever exchangeInfo lists now.

    Raises ExchangeError, also when the exchange tells too little to choose the top pairs by.
    """
    wanted = settings.pairs
    if isinstance(wanted, TopPairs):
        volumes = await rest.quote_volumes()
        require_choosable(info, settings.quote, wanted.count, volumes, settings.contracts)
        return select_top(info, settings.quote, wanted.count, volumes, settings.contracts)
    if wanted == "all":
        return select_all(info, settings.quote, settings.contracts, known)
    return select_named(info, wanted, settings.contracts, known)


def left_out(settings: ExchangeSettings, info: ExchangeInfo) -> str:
    """What trades and is left out by its type, counted, for people; empty where the pairs are named."""
    if not isinstance(settings.pairs, TopPairs) and settings.pairs != "all":
        return ""
    counts = info.left_out(settings.quote, settings.contracts)
    if not counts:
        return ""
    to_add = [name for name, kind in CONTRACT_TYPES.items() if kind in counts]
    kinds = ", ".join(f"{kind or 'no type'} {count}" for kind, count in counts.items())
    hint = f"; exchange.contracts may name {', '.join(to_add)} as well" if to_add else ""
    return f"{sum(counts.values())} trading contracts are left out by type: {kinds}{hint}"


def require_choosable(
    info: ExchangeInfo,
    quote: str,
    count: int,
    volumes: Mapping[str, float],
    contracts: Collection[str] = PERPETUAL,
) -> None:
    """Raise ExchangeError unless exchangeInfo and 24 h volumes (by symbol) are whole enough to choose by.

    What is chosen is kept: in the midst of a maintenance it would be the wrong pairs, or none, for ever.
    Where there are no more than `count`, volumes do not matter.
    """
    lasting = [
        one
        for one in info.instruments.values()
        if one.quote == quote and one.contract in contracts and one.is_lasting
    ]
    trading = [one for one in lasting if one.trades]
    reported = [volumes[one.symbol] for one in trading if one.symbol in volumes]
    active = sum(volume > 0.0 for volume in reported)
    halted, unreported = len(lasting) - len(trading), len(trading) - len(reported)
    too_few = not trading or halted > max(MAY_LACK * len(lasting), 1)
    no_volumes = unreported > max(MAY_LACK * len(trading), 1) or active < WITH_VOLUME * len(trading)
    if too_few or (no_volumes and count < len(lasting)):
        raise ExchangeError(
            f"not enough to choose the top pairs by: {len(trading)} of {len(lasting)} {quote} perpetuals "
            f"trade, ticker/24hr has {len(reported)} of these, {active} with a volume"
        )
