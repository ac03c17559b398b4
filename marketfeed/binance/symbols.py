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
PENDING: Final = "PENDING_TRADING"
TRADING_STATUSES: Final = frozenset({TRADING, "PRE_DELIVERING", "PRE_SETTLE"})
ENDED_STATUSES: Final = frozenset({"DELIVERING", "DELIVERED", "SETTLING", CLOSED})
"""What has one of these trades no more. Every other status is a halt, but for `PENDING_TRADING`."""


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
    def trades(self) -> bool:
        """Whether it is a perpetual, of a coin or another, that trades now."""
        return self.contract_type in _COLLECTABLE and self.status in TRADING_STATUSES

    @property
    def collectable(self) -> bool:
        """Whether it is a perpetual, of a coin or another, that trades now or has halted."""
        return self.contract_type in _COLLECTABLE and self.has_begun

    @property
    def has_begun(self) -> bool:
        """Whether by its status it trades or has halted: it has begun, and has not ended."""
        return self.status != PENDING and self.status not in ENDED_STATUSES

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
    `beside` are other contracts of a pair's name. `taken` is why a pair's name is not its row's yet, by pair:
    another contract has it. What ended by `at_ms` is over (0 where nothing is known of the time).
    """

    instruments: Mapping[str, Instrument]
    not_understood: int
    odd: Mapping[str, str] = {}
    trading: Mapping[tuple[str, str], int] = {}
    beside: tuple[Instrument, ...] = ()
    taken: Mapping[str, str] = {}
    at_ms: int = 0

    def contract(self, pair: str, symbol: str) -> Instrument | None:
        """The contract of a pair of that symbol, though another one may have the pair's name by now."""
        found = self.instruments.get(pair)
        if found is not None and found.symbol == symbol:
            return found
        others = (one for one in self.beside if one.pair == pair and one.symbol == symbol)
        return next(others, None)

    def is_over(self, instrument: Instrument) -> bool:
        """Whether a contract has ended by its date."""
        return instrument.ended_ms is not None and instrument.ended_ms <= self.at_ms

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
    beside: list[Instrument] = []
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
            if known is not None:
                beside.append(known)
        else:
            beside.append(instrument)
    if not instruments:
        raise ExchangeError("exchangeInfo: lists no instrument that could be understood")
    return ExchangeInfo(instruments, not_understood, odd, +trading, tuple(beside))


def _rank(instrument: Instrument) -> tuple[bool, bool, bool, int]:
    return (
        instrument.contract_type in _COLLECTABLE,
        instrument.contract_type == CONTRACT_TYPES["perpetual"],
        instrument.status in TRADING_STATUSES,
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
    info: ExchangeInfo,
    pairs: Iterable[str],
    contracts: Collection[str] = tuple(CONTRACT_TYPES),
    known: Mapping[str, Instrument] = MappingProxyType({}),
) -> Selection:
    """Select pairs by name, in their order; those that cannot be collected are named with the reason.

    What is `known` of pairs from before is selected where their rows are missing: that is no end.
    """
    chosen: list[Instrument] = []
    refused: dict[str, str] = {}
    other: set[str] = set()
    for pair in pairs:
        instrument = info.instruments.get(pair)
        if (before := _still_there(info, known.get(pair))) is not None:
            chosen.append(before)
        elif instrument is None:
            why = info.odd.get(usual_symbol(pair))
            unreadable = f"its row of exchangeInfo cannot be understood: {why}"
            unknown = unreadable if why else "the exchange lists no such contract"
            refused[pair] = info.taken.get(pair, unknown)
        elif instrument.contract and instrument.contract not in contracts:
            refused[pair] = (
                f"its contract type is {instrument.contract_type}: exchange.contracts needs "
                f"{instrument.contract} to collect it"
            )
            other.add(pair)
        elif not instrument.collectable or info.is_over(instrument):
            kind = instrument.contract_type or "no contract type"
            refused[pair] = f"{kind}, status {instrument.status or 'unknown'}"
        else:
            chosen.append(instrument)
    return Selection(tuple(chosen), refused, frozenset(other))


def _still_there(info: ExchangeInfo, known: Instrument | None) -> Instrument | None:
    """A contract that was collected before, if the exchange does not say more of it than that it goes on.

    Its row is missing, cannot be read, or has a type that nobody knows: none of these is an end.
    """
    if known is None:
        return None
    row = info.contract(known.pair, known.symbol)
    if row is None:
        return known
    goes_on = not row.contract and row.has_begun and not info.is_over(row)
    return row if goes_on else None


def usual_symbol(pair: str) -> str:
    """The symbol that a pair's perpetual usually has."""
    return pair.partition(":")[0].replace("/", "")


def select_all(
    info: ExchangeInfo,
    quote: str,
    contracts: Collection[str] = PERPETUAL,
    known: Mapping[str, Instrument] = MappingProxyType({}),
) -> Selection:
    """Select every contract of these types and of a quote asset that trades or has halted.

    What is `known` of pairs from before is selected where their rows are missing: that is no end.
    """
    listed = [i for i in info.instruments.values() if i.contract and i.quote == quote]
    chosen = {
        i.pair: i
        for i in listed
        if i.contract in contracts and i.collectable and not info.is_over(i)
    }
    for pair, one in known.items():
        if one.quote == quote and (before := _still_there(info, one)) is not None:
            chosen[pair] = before
    other = frozenset(i.pair for i in listed if i.contract not in contracts)
    return Selection(tuple(sorted(chosen.values(), key=lambda i: i.pair)), {}, other)


def select_top(
    info: ExchangeInfo,
    quote: str,
    count: int,
    quote_volumes: Mapping[str, float],
    contracts: Collection[str] = PERPETUAL,
) -> Selection:
    """Select the `count` contracts that trade with the highest 24 h quote volume (symbol -> volume)."""
    chosen = sorted(
        (one for one in select_all(info, quote, contracts).instruments if one.trades),
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
