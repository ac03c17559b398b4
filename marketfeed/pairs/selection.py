"""Selects the pairs that the settings ask for from what the exchange lists."""

from collections.abc import Mapping
from typing import Final

import msgspec

from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.symbols import (
    COLLECTED_CONTRACTS,
    ExchangeInfo,
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


class Listing(msgspec.Struct, frozen=True):
    """What to collect, and the exchangeInfo it was taken from, as it came."""

    selection: Selection
    exchange_info: bytes


async def select(settings: ExchangeSettings, rest: BinanceRest, info: ExchangeInfo) -> Selection:
    """Select what the settings ask for; asks for 24 h volumes where that needs them.

    Raises ExchangeError, also when the exchange tells too little to choose the top pairs by.
    """
    wanted = settings.pairs
    if isinstance(wanted, TopPairs):
        volumes = await rest.quote_volumes()
        require_choosable(info, settings.quote, wanted.count, volumes)
        return select_top(info, settings.quote, wanted.count, volumes)
    if wanted == "all":
        return select_all(info, settings.quote)
    return select_named(info, wanted)


def require_choosable(
    info: ExchangeInfo, quote: str, count: int, volumes: Mapping[str, float]
) -> None:
    """Raise ExchangeError unless exchangeInfo and 24 h volumes (by symbol) are whole enough to choose by.

    What is chosen is kept: in the midst of a maintenance it would be the wrong pairs, or none, for ever.
    Where there are no more than `count`, volumes do not matter.
    """
    lasting = [
        one
        for one in info.instruments.values()
        if one.quote == quote and one.contract_type in COLLECTED_CONTRACTS and one.is_lasting
    ]
    trading = [one for one in lasting if one.collectable]
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
