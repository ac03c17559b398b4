"""What trades amount to, worked out the slow way."""

from collections.abc import Sequence

from hypothesis import strategies as st

from marketfeed import schema
from marketfeed.simulator.frames import Bar
from marketfeed.simulator.trades import Trade

START_MS = 1_790_000_000_000 // schema.HOUR_MS * schema.HOUR_MS
PAIRS = ("ETH/USDT:USDT", "1000PEPE/USDT:USDT", "币安人生/USDT:USDT", "SIM007/USDT:USDT")
RATES = st.one_of(st.floats(0.003, 0.2), st.floats(0.2, 12.0))


def bar_of(trades: Sequence[Trade], last_price: int) -> Bar:
    if not trades:
        return Bar(last_price, last_price, last_price, last_price, 0, 0, 0, 0, 0)
    prices = [price for _, price, _, _ in trades]
    return Bar(
        prices[0], max(prices), min(prices), prices[-1],
        sum(lots for _, _, lots, _ in trades),
        len(trades),
        sum(price * lots for _, price, lots, _ in trades),
        sum(lots for _, _, lots, bought in trades if bought),
        sum(price * lots for _, price, lots, bought in trades if bought),
    )  # fmt: skip
