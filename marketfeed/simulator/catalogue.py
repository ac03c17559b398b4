"""Which contracts the simulated exchange lists.

First the pairs of `data/pairs.txt`, then further real names (`data/more_bases.txt`), then synthetic
ones. Beside them stand, always, contracts that no collector of perpetuals may take: a TradFi
perpetual, quarterlies, one not trading yet, a delisted one, a USDC-quoted one.
"""

import functools
import hashlib
import importlib.resources
import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from marketfeed import schema
from marketfeed.errors import SettingsError
from marketfeed.simulator.instrument import TRADIFI, Instrument

PURE = True

_DATA: Final = importlib.resources.files("marketfeed.simulator") / "data"

# Share of the pairs, the liveliest first -> trades per exchange second. A handful trade 10-30 times
# a second, the median once in two, the last once in minutes.
_RATES: Final = (
    (0.0, 30.0), (0.05, 10.0), (0.15, 2.4), (0.5, 0.5), (0.75, 0.08), (0.95, 0.01), (1.0, 0.004),
)  # fmt: skip

# Roughly what they cost, so that a table of the simulator looks like a market.
_PRICES: Final = {
    "BTC": 95_000.0, "ETH": 3_400.0, "BNB": 700.0, "SOL": 190.0, "XRP": 2.3, "TRX": 0.26,
    "DOGE": 0.32, "ADA": 0.9, "BCH": 440.0, "LINK": 21.0, "LTC": 105.0, "AVAX": 37.0, "ZEC": 55.0,
    "XMR": 195.0, "DOT": 6.9, "UNI": 13.0, "AAVE": 310.0, "1000PEPE": 0.02, "1000SHIB": 0.0215,
    "1MBABYDOGE": 0.0031, "1000SATS": 0.0002,
}  # fmt: skip

_FIRST_ONBOARD_MS: Final = 1_569_398_400_000  # BTCUSDT, 2019-09-25
_LAST_ONBOARD_MS: Final = 1_719_792_000_000  # 2024-07-01


@functools.cache
def listed_pairs() -> tuple[str, ...]:
    """Return the real pairs the simulator knows by name, in its order (BTC first)."""
    pairs = (_DATA / "pairs.txt").read_text("utf-8").split()
    bases = (_DATA / "more_bases.txt").read_text("utf-8").split()
    return (*pairs, *(f"{base}/USDT:USDT" for base in bases))


def choose_pairs(pairs: int | Sequence[str]) -> tuple[str, ...]:
    """Return the pairs to simulate: the first N, or those named (as Freqtrade names them).

    Raises SettingsError if a name is no pair in USDT, is named twice, or if there is none.
    """
    if isinstance(pairs, int):
        if not 1 <= pairs <= 1_000:
            raise SettingsError(f"pairs: 1 to 1000 are expected, not {pairs}")
        real = listed_pairs()[:pairs]
        return (*real, *(f"SIM{n:03d}/USDT:USDT" for n in range(len(real) + 1, pairs + 1)))
    chosen = tuple(pairs)
    for pair in chosen:
        if not schema.is_pair(pair) or not pair.endswith("/USDT:USDT"):
            raise SettingsError(f"pairs: {schema.PAIR_EXAMPLE} is expected, not {pair!r}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise SettingsError("pairs: at least one, and none twice")
    return chosen


def _fractions(text: str) -> tuple[float, ...]:
    """Eight numbers in [0, 1) that depend on `text` alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=32).digest()
    return tuple(
        int.from_bytes(digest[at : at + 4], "little") / 2**32 for at in range(0, len(digest), 4)
    )


def _rate(share: float) -> float:
    """Trades per second at `share` of the way from the liveliest pair to the quietest."""
    for (left, high), (right, low) in itertools.pairwise(_RATES):
        if share <= right:
            return high * math.exp(math.log(low / high) * (share - left) / (right - left))
    return _RATES[-1][1]


def make_instrument(pair: str, trades_per_s: float, price: float | None = None) -> Instrument:
    """Return the contract `BASE/QUOTE:MARGIN`, its price (unless given) and precisions chosen by its name.

    Ticks are about a hundred-thousandth of the price; as on the exchange, some symbols print more
    decimals than their tick has.
    """
    base, _, rest = pair.partition("/")
    quote, _, margin = rest.partition(":")
    at_price, at_extra, at_notional, at_onboard, at_hours, *_ = _fractions(pair)
    price = price or _PRICES.get(base) or 10 ** (-3.0 + 4.7 * at_price)
    digits = math.floor(math.log10(price))
    tick_decimals = min(max(2, 4 - digits), 8)
    precision = min(tick_decimals + (0, 0, 1, 2)[int(at_extra * 4)], 8)
    tick_units = 10 ** (precision - tick_decimals)
    if base == "BTC":
        precision, tick_units = 2, 10
    quantity_precision = 3 if price >= 1_000 else 2 if price >= 100 else 1 if price >= 10 else 0
    onboard_ms = _FIRST_ONBOARD_MS
    if base != "BTC":
        onboard_ms += int(at_onboard * (_LAST_ONBOARD_MS - _FIRST_ONBOARD_MS))
    return Instrument(
        symbol=base + quote,
        base=base,
        quote=quote,
        margin=margin,
        price_precision=precision,
        tick_units=tick_units,
        quantity_precision=quantity_precision,
        typical_price=price,
        typical_notional=(200.0 + 1_800.0 * at_notional) * max(1.0, trades_per_s / 3.0),
        trades_per_s=trades_per_s,
        funding_hours=8 if base in {"BTC", "ETH"} else _funding_hours(at_hours),
        onboard_ms=schema.floor_to(onboard_ms, schema.HOUR_MS),
    )


def _funding_hours(share: float) -> int:
    return 8 if share < 0.62 else 4 if share < 0.9 else 1


def instruments(pairs: int | Sequence[str]) -> tuple[Instrument, ...]:
    """Return the contracts to simulate, the liveliest first. Raises SettingsError as `choose_pairs`."""
    chosen = choose_pairs(pairs)
    return tuple(
        make_instrument(pair, _rate((rank + 0.5) / len(chosen))) for rank, pair in enumerate(chosen)
    )


def tradifi(pairs: Sequence[str]) -> tuple[Instrument, ...]:
    """Return TradFi contracts of these pairs, alike all. Raises SettingsError as `choose_pairs`."""
    return tuple(
        _as_tradifi(make_instrument(pair, 5.0)) for pair in (choose_pairs(pairs) if pairs else ())
    )


def _as_tradifi(like: Instrument) -> Instrument:
    return msgspec.structs.replace(
        like,
        contract_type=TRADIFI,
        price_precision=2,
        tick_units=1,
        quantity_precision=3,
        typical_price=4_100.0,
        funding_hours=4,
        underlying_type="COMMODITY",
        underlying_sub_types=("TradFi",),
    )


def bystanders(now_ms: int) -> tuple[Instrument, ...]:
    """Return the contracts that are listed at `now_ms` but are none to collect.

    Their volumes in `ticker/24hr` are large, so that a choice by volume alone would take them.
    """
    current, following = _quarters(now_ms)
    btc = make_instrument("BTC/USDT:USDT", 5.0)
    quarterly = msgspec.structs.replace(
        btc, price_precision=1, tick_units=1, onboard_ms=current - 180 * schema.DAY_MS
    )
    gold = make_instrument("XAU/USDT:USDT", 5.0)
    delisted = make_instrument("OMG/USDT:USDT", 0.0)
    coming = make_instrument("龙虾/USDT:USDT", 0.0)
    return (
        _as_tradifi(gold),
        *(
            msgspec.structs.replace(
                quarterly,
                symbol=f"BTCUSDT_{_date(delivery_ms):%y%m%d}",
                underlying="BTCUSDT",
                contract_type=kind,
                delivery_ms=delivery_ms,
                funding_hours=0,
            )
            for kind, delivery_ms in (("CURRENT_QUARTER", current), ("NEXT_QUARTER", following))
        ),
        msgspec.structs.replace(
            coming,
            contract_type="",
            status="PENDING_TRADING",
            onboard_ms=schema.floor_to(now_ms, schema.DAY_MS) + 2 * schema.DAY_MS,
        ),
        msgspec.structs.replace(
            delisted,
            status="SETTLING",
            onboard_ms=min(1_593_680_400_000, now_ms - 90 * schema.DAY_MS),
            delivery_ms=min(1_738_314_000_000, now_ms - 30 * schema.DAY_MS),
        ),
        make_instrument("BTC/USDC:USDC", 5.0),
    )


def _date(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1_000, UTC)


def _quarters(now_ms: int) -> tuple[int, int]:
    """The next two quarterly deliveries after `now_ms`: last Fridays of a quarter, 08:00 UTC."""
    found: list[int] = []
    year, month = _date(now_ms).year, 3
    while len(found) < 2:
        first_of_next = datetime(year + month // 12, month % 12 + 1, 1, 8, tzinfo=UTC)
        last = first_of_next - timedelta(days=1)
        friday = last - timedelta(days=(last.weekday() - 4) % 7)
        delivery_ms = int(friday.timestamp()) * 1_000
        if delivery_ms > now_ms:
            found.append(delivery_ms)
        year, month = (year, month + 3) if month < 12 else (year + 1, 3)
    return found[0], found[1]


# --- exchangeInfo ---------------------------------------------------------------------------------


def _symbol(instrument: Instrument) -> dict[str, object]:
    tick = instrument.tick_units / instrument.price_scale
    step = f"{1 / instrument.quantity_scale:.{instrument.quantity_precision}f}"
    price = f".{instrument.price_precision}f"
    most = f"{max(1, round(1_000_000 / instrument.typical_price)):d}"
    row: dict[str, object] = {
        "symbol": instrument.symbol,
        "pair": instrument.underlying or instrument.symbol,
        "contractType": instrument.contract_type,
        "deliveryDate": instrument.delivery_ms,
        "onboardDate": instrument.onboard_ms,
        "status": instrument.status,
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": instrument.base,
        "quoteAsset": instrument.quote,
        "marginAsset": instrument.margin,
        "pricePrecision": instrument.price_precision,
        "quantityPrecision": instrument.quantity_precision,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": instrument.underlying_type,
        "underlyingSubType": instrument.underlying_sub_types,
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10_000,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": f"{tick:{price}}",
                "maxPrice": f"{instrument.typical_price * 20:{price}}",
                "tickSize": f"{tick:{price}}",
            },
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": most, "stepSize": step},
            {"filterType": "MARKET_LOT_SIZE", "minQty": step, "maxQty": most, "stepSize": step},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MIN_NOTIONAL", "notional": "5"},
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDown": "0.9500",
                "multiplierDecimal": "4",
            },
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": [
            "LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET",
            "TRAILING_STOP_MARKET",
        ],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY", "DCA"],
    }  # fmt: skip
    if instrument.null_key:
        row[instrument.null_key] = None
    return row


class ExchangeInfo:
    """The body of `/fapi/v1/exchangeInfo`; only its `serverTime` changes."""

    def __init__(self, listed: Sequence[Instrument]) -> None:
        limits = [
            {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": limit}
            for kind, interval, number, limit in (
                ("REQUEST_WEIGHT", "MINUTE", 1, 2_400),
                ("ORDERS", "MINUTE", 1, 1_200),
                ("ORDERS", "SECOND", 10, 300),
            )
        ]
        assets = [
            {"asset": asset, "marginAvailable": True, "autoAssetExchange": "-10000"}
            for asset in sorted({instrument.margin for instrument in listed})
        ]
        rest = msgspec.json.encode(
            {
                "futuresType": "U_MARGINED",
                "rateLimits": limits,
                "exchangeFilters": [],
                "assets": assets,
                "symbols": [_symbol(instrument) for instrument in listed],
            }
        )
        self._tail = b"," + rest[1:]

    def body(self, server_time_ms: int) -> bytes:
        """Return the whole body as of `server_time_ms`."""
        return b'{"timezone":"UTC","serverTime":%d' % server_time_ms + self._tail
