"""One contract of the simulated exchange: its names, precisions and habits."""

from typing import Final

import msgspec

PURE = True

NEVER_DELIVERED_MS: Final = 4_133_404_800_000
"""`deliveryDate` of a perpetual for which no end is announced (2100-12-25)."""

TRADIFI: Final = "TRADIFI_PERPETUAL"


class Instrument(msgspec.Struct, frozen=True):
    """A contract as exchangeInfo lists it, and how its simulated market behaves.

    Prices are whole numbers of `10 ** -price_precision` quote units ("price units"), always multiples
    of `tick_units`; volumes are whole numbers of `10 ** -quantity_precision` base units ("lots").
    A price times a volume is in `10 ** -quote_precision` quote units, exactly.
    `trades_per_s` is per exchange second; `typical_price` and `typical_notional` are in the quote.
    `null_key` is what exchangeInfo gives null for, wrongly.
    """

    symbol: str
    base: str
    quote: str
    margin: str
    price_precision: int
    tick_units: int
    quantity_precision: int
    typical_price: float
    typical_notional: float
    trades_per_s: float
    funding_hours: int
    onboard_ms: int
    underlying: str = ""
    contract_type: str = "PERPETUAL"
    status: str = "TRADING"
    delivery_ms: int = NEVER_DELIVERED_MS
    underlying_type: str = "COIN"
    underlying_sub_types: tuple[str, ...] = ()
    null_key: str = ""

    @property
    def pair(self) -> str:
        """Freqtrade's name of the contract, for example `BTC/USDT:USDT`."""
        return f"{self.base}/{self.quote}:{self.margin}"

    @property
    def price_scale(self) -> int:
        """Price units in one quote unit."""
        return int(10**self.price_precision)

    @property
    def quantity_scale(self) -> int:
        """Lots in one base unit."""
        return int(10**self.quantity_precision)

    @property
    def quote_precision(self) -> int:
        """Decimals of a quote volume: those of the price and of the quantity together."""
        return self.price_precision + self.quantity_precision

    @property
    def quote_scale(self) -> int:
        """Units of a quote volume in one quote unit."""
        return int(10**self.quote_precision)

    @property
    def is_tradifi(self) -> bool:
        """Whether it is a perpetual of gold, a stock or the like."""
        return self.contract_type == TRADIFI

    @property
    def trades(self) -> bool:
        """Whether it is a coin's perpetual that trades: what a collector may collect."""
        return (
            self.contract_type == "PERPETUAL" and self.status == "TRADING" and self.quote == "USDT"
        )


def decimal(units: int, precision: int) -> str:
    """Print `units * 10 ** -precision` with exactly `precision` decimals."""
    if precision == 0:
        return str(units)
    sign = "-" if units < 0 else ""
    whole, part = divmod(abs(units), 10**precision)
    return f"{sign}{whole}.{part:0{precision}d}"
