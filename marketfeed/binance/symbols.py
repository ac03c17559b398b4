"""Binance's symbols, Freqtrade's pairs, and which of them to collect.

`BTC/USDT:USDT` (Freqtrade, ccxt) is `BTCUSDT` at Binance and `BTC-USDT-PERP` in cryptofeed. Names are
built from exchangeInfo's own fields, never cut out of the symbol: `1000PEPE` and Chinese names are bases.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.binance.odd_rows import documented, symbol_of
from marketfeed.errors import ExchangeError
from marketfeed.records import CatalogEntry

PURE = True

NEVER_MS: Final = 4_133_404_800_000
"""`deliveryDate` of a perpetual whose end has not been announced (2100-12-25)."""

CONTRACT_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"perpetual": "PERPETUAL", "tradifi": "TRADIFI_PERPETUAL"}
)
"""Binance's `contractType` of each type that can be collected, as `exchange.contracts` names it."""
PERPETUAL: Final = ("perpetual",)
_COLLECTABLE: Final = frozenset(CONTRACT_TYPES.values())
_NAMES: Final = {kind: name for name, kind in CONTRACT_TYPES.items()}
TRADING: Final = "TRADING"
CLOSED: Final = "CLOSE"


class Instrument(msgspec.Struct, frozen=True, gc=False):
    """One contract of exchangeInfo. `status` and `contract_type` are Binance's words, known or not."""

    symbol: str
    pair: str
    quote: str
    status: str
    contract_type: str
    listed_ms: int
    delivery_ms: int

    @property
    def contract(self) -> str:
        """Its type as `exchange.contracts` names it; empty if it can not be collected."""
        return _NAMES.get(self.contract_type, "")

    @property
    def collectable(self) -> bool:
        """Whether it is a perpetual, of a coin or another, that trades now."""
        return self.contract_type in _COLLECTABLE and self.status == TRADING

    @property
    def is_lasting(self) -> bool:
        """Whether it has not ended and is not announced to, trading now or not.

        Some 400 of 900 contracts have ended: they stay in exchangeInfo for years.
        """
        return self.status != CLOSED and (self.delivery_ms == 0 or self.delivery_ms >= NEVER_MS)

    @property
    def ended_ms(self) -> int | None:
        """When it ends or ended, if that has been announced."""
        return None if self.delivery_ms in (0, NEVER_MS) else self.delivery_ms


def remembered(entry: CatalogEntry) -> Instrument:
    """What the journal knows of a contract that was collected before."""
    return Instrument(
        symbol=entry.symbol,
        pair=entry.pair,
        quote=quote_of(entry.pair),
        status="",
        contract_type="",
        listed_ms=entry.listed_ms or 0,
        delivery_ms=entry.ended_ms or 0,
    )


def quote_of(pair: str) -> str:
    """The quote asset of a pair."""
    return pair.partition("/")[2].partition(":")[0]


class _Symbol(msgspec.Struct, rename="camel"):
    symbol: str
    base_asset: str
    quote_asset: str
    margin_asset: str = ""
    status: str = ""
    contract_type: str = ""
    onboard_date: int = 0
    delivery_date: int = 0


class _ExchangeInfo(msgspec.Struct):
    symbols: list[msgspec.Raw]


class ExchangeInfo(msgspec.Struct, frozen=True):
    """What exchangeInfo lists: instruments by pair, and how many rows could not be understood.

    `odd` holds the reasons by symbol ("" where that cannot be read either): these contracts are not gone.
    `trading` counts what trades by quote and contract type: quarterlies, too, which are no instruments.
    """

    instruments: Mapping[str, Instrument]
    not_understood: int
    odd: Mapping[str, str] = {}
    trading: Mapping[tuple[str, str], int] = {}

    def contract(self, pair: str, symbol: str) -> Instrument | None:
        """The contract of a pair if it is the one of that symbol, which may have become another's."""
        found = self.instruments.get(pair)
        return found if found is not None and found.symbol == symbol else None

    def may_list(self, symbol: str) -> bool:
        """Whether a row that could not be understood may be the one of this contract."""
        return symbol in self.odd or "" in self.odd

    def left_out(self, quote: str, contracts: Collection[str]) -> dict[str, int]:
        """How many contracts of a quote asset trade and are of another type, by Binance's word for it."""
        wanted = {CONTRACT_TYPES[name] for name in contracts}
        return {
            kind: count
            for (of, kind), count in sorted(self.trading.items())
            if of == quote and kind not in wanted
        }


def parse_exchange_info(body: bytes) -> ExchangeInfo:
    """Read an answer of `/fapi/v1/exchangeInfo`; a row that makes no sense is skipped and counted.

    Raises ExchangeError when it is no such answer, or lists no instrument at all.
    """
    instruments: dict[str, Instrument] = {}
    not_understood = 0
    odd: dict[str, str] = {}
    trading = Counter[tuple[str, str]]()
    for row in documented("exchangeInfo", body, _ExchangeInfo).symbols:
        try:
            item = msgspec.json.decode(row, type=_Symbol)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            odd[symbol_of(row) or ""] = str(error)
            not_understood += 1
            continue
        pair = f"{item.base_asset}/{item.quote_asset}:{item.margin_asset or item.quote_asset}"
        instrument = Instrument(
            symbol=item.symbol,
            pair=pair,
            quote=item.quote_asset,
            status=item.status,
            contract_type=item.contract_type,
            listed_ms=item.onboard_date,
            delivery_ms=item.delivery_date,
        )
        if not schema.is_pair(pair):
            odd[item.symbol] = f"names {pair!r}, which is no pair such as {schema.PAIR_EXAMPLE}"
            not_understood += 1
            continue
        trading[item.quote_asset, item.contract_type] += item.status == TRADING
        known = instruments.get(pair)
        # A quarterly contract has the same base and quote as the perpetual; that one is the pair.
        if known is None or _rank(instrument) > _rank(known):
            instruments[pair] = instrument
    if not instruments:
        raise ExchangeError("exchangeInfo: lists no instrument that could be understood")
    return ExchangeInfo(instruments, not_understood, odd, +trading)


def _rank(instrument: Instrument) -> tuple[bool, bool, bool, int]:
    return (
        instrument.contract_type in _COLLECTABLE,
        instrument.contract_type == CONTRACT_TYPES["perpetual"],
        instrument.status == TRADING,
        instrument.delivery_ms,
    )


class Selection(msgspec.Struct, frozen=True):
    """The instruments to collect, and the pairs that were asked for and are not (with why).

    `of_other_types` are pairs that the settings exclude by their type, trading or not.
    """

    instruments: tuple[Instrument, ...]
    refused: Mapping[str, str]
    of_other_types: frozenset[str] = frozenset()


def select_named(
    info: ExchangeInfo, pairs: Iterable[str], contracts: Collection[str] = tuple(CONTRACT_TYPES)
) -> Selection:
    """Select pairs by name, in their order; those that cannot be collected are named with the reason."""
    chosen: list[Instrument] = []
    refused: dict[str, str] = {}
    other: set[str] = set()
    for pair in pairs:
        instrument = info.instruments.get(pair)
        if instrument is None:
            why = info.odd.get(usual_symbol(pair))
            unreadable = f"its row of exchangeInfo cannot be understood: {why}"
            refused[pair] = unreadable if why else "the exchange lists no such contract"
        elif instrument.contract and instrument.contract not in contracts:
            refused[pair] = (
                f"its contract type is {instrument.contract_type}: exchange.contracts needs "
                f"{instrument.contract} to collect it"
            )
            other.add(pair)
        elif not instrument.collectable:
            kind = instrument.contract_type or "no contract type"
            refused[pair] = f"{kind}, status {instrument.status or 'unknown'}"
        else:
            chosen.append(instrument)
    return Selection(tuple(chosen), refused, frozenset(other))


def usual_symbol(pair: str) -> str:
    """The symbol that a pair's perpetual usually has."""
    return pair.partition(":")[0].replace("/", "")


def select_all(info: ExchangeInfo, quote: str, contracts: Collection[str] = PERPETUAL) -> Selection:
    """Select every contract of these types and of a quote asset that trades."""
    listed = [i for i in info.instruments.values() if i.contract and i.quote == quote]
    chosen = [i for i in listed if i.contract in contracts and i.collectable]
    other = frozenset(i.pair for i in listed if i.contract not in contracts)
    return Selection(tuple(sorted(chosen, key=lambda i: i.pair)), {}, other)


def select_top(
    info: ExchangeInfo,
    quote: str,
    count: int,
    quote_volumes: Mapping[str, float],
    contracts: Collection[str] = PERPETUAL,
) -> Selection:
    """Select the `count` contracts with the highest 24 h quote volume (symbol -> volume)."""
    chosen = sorted(
        select_all(info, quote, contracts).instruments,
        key=lambda i: (-quote_volumes.get(i.symbol, 0.0), i.pair),
    )
    return Selection(tuple(chosen[:count]), {})


def stream_name(instrument: Instrument, channel: str, mark_price_every_ms: int) -> str:
    """Name of one stream: lower case, raw UTF-8. `channel` is a timeframe or `mark_price`.

    An unknown or upper-case name is ACKed by Binance and stays silent for ever.
    """
    if channel != schema.MARK_PRICE:
        suffix = f"kline_{channel}"
    else:
        suffix = "markPrice@1s" if mark_price_every_ms == schema.SECOND_MS else "markPrice"
    return f"{instrument.symbol.lower()}@{suffix}"


def stream_names(
    instruments: Sequence[Instrument], timeframes: Sequence[str], mark_price_every_ms: int
) -> list[str]:
    """Names of all streams to subscribe, a symbol's together."""
    return [
        stream_name(instrument, channel, mark_price_every_ms)
        for instrument in instruments
        for channel in (*timeframes, schema.MARK_PRICE)
    ]
