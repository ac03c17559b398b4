"""The order book of a simulated contract, as far as REST shows it: `/depth` and `/ticker/bookTicker`.

There are no orders behind it: it stands one tick around the last price, with the contract's typical
trade on every level, so that whoever asks for a price or a fill finds a plausible one.
"""

import msgspec

from marketfeed.simulator.instrument import Instrument, decimal

PURE = True


class Depth(msgspec.Struct, frozen=True, rename={"last_update_id": "lastUpdateId"}):
    """The body of `/fapi/v1/depth`: levels of price and quantity, the best first; times in ms."""

    last_update_id: int
    E: int
    T: int
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


class BookTicker(msgspec.Struct, frozen=True, rename="camel"):
    """A row of `/fapi/v1/ticker/bookTicker`."""

    symbol: str
    bid_price: str
    bid_qty: str
    ask_price: str
    ask_qty: str
    time: int
    last_update_id: int


def depth(instrument: Instrument, last_price: float, time_ms: int, levels: int) -> Depth:
    """Return `levels` levels on each side of `last_price`."""
    best = round(last_price * instrument.price_scale)
    lots = decimal(_lots(instrument, last_price), instrument.quantity_precision)
    tick = instrument.tick_units

    def price(units: int) -> str:
        return decimal(units, instrument.price_precision)

    return Depth(
        last_update_id=time_ms,
        E=time_ms,
        T=time_ms,
        bids=[(price(best - n * tick), lots) for n in range(levels) if best > n * tick],
        asks=[(price(best + n * tick), lots) for n in range(1, levels + 1)],
    )


def book_ticker(instrument: Instrument, last_price: float, time_ms: int) -> BookTicker:
    """Return the best level of each side."""
    top = depth(instrument, last_price, time_ms, 1)
    (bid_price, bid_qty), (ask_price, ask_qty) = top.bids[0], top.asks[0]
    return BookTicker(
        instrument.symbol, bid_price, bid_qty, ask_price, ask_qty, time_ms, top.last_update_id
    )


def _lots(instrument: Instrument, last_price: float) -> int:
    return max(1, round(instrument.typical_notional / last_price * instrument.quantity_scale))
