"""Settings of what is collected: which pairs and timeframes of the exchange, and from where."""

import contextlib
import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
)

from marketfeed import schema
from marketfeed.settings.addresses import address
from marketfeed.settings.values import (
    Duration,
    FromText,
    Section,
    Switch,
    Whole,
    decode_list,
    each,
    expected,
    expecting,
    one_of,
)


@dataclass(frozen=True, slots=True)
class TopPairs:
    """The `count` pairs with the greatest 24 h quote volume: `pairs: {top: 164}`."""

    count: int


Pairs = TopPairs | tuple[str, ...] | Literal["all"]
"""Which pairs are collected: the most traded, the named ones, or every one that is listed."""
_IN_A_MINUTE: Final = ("3s", "4s", "5s", "6s", "10s", "12s", "15s", "20s", "30s", "60s")
_COUNT: Final = TypeAdapter[int](Annotated[Whole, Field(ge=1, le=1000)])


def _pairs(value: object, info: ValidationInfo) -> object:
    if value == "all":
        return "all"
    if isinstance(value, TopPairs):
        value = {"top": value.count}
    if isinstance(value, dict) and set(value) == {"top"}:
        with contextlib.suppress(ValueError):
            return TopPairs(_COUNT.validate_python(value["top"]))
    example = schema.PAIR_EXAMPLE
    if not isinstance(value, list | tuple) or not value:
        raise expected(f"{{top: N}} with N from 1 to 1000, a list such as [{example}], or all")
    # None if the quote is a mistake itself, which is reported then.
    quote = info.data.get("quote")

    def problem(pair: object) -> str | None:
        if not isinstance(pair, str) or not schema.is_pair(pair):
            return f"a pair as Freqtrade writes it, such as {example}"
        if quote is not None and not pair.endswith(f"/{quote}:{quote}"):
            return f"a pair that ends in /{quote}:{quote}, as exchange.quote says"
        return None

    return each(value, problem, "each pair once")


def decode_pairs(text: str) -> object:
    """Decode `all`, `top:50`, `BTC/USDT:USDT,ETH/USDT:USDT`, or JSON."""
    if match := re.fullmatch(r"top: ?([0-9]+)", text):
        return {"top": match[1]}
    return text if text == "all" else decode_list(text)


CONTRACTS: Final = ("perpetual", "tradifi")
"""Types of contracts that can be collected: coins' perpetuals, and those of gold, stocks and the like."""


def _contracts(value: object) -> object:
    if not isinstance(value, list | tuple) or not value:
        raise expected("a list such as [perpetual] or [perpetual, tradifi]")
    one = "one of " + ", ".join(CONTRACTS)
    named = each(value, lambda name: None if name in CONTRACTS else one, "each type once")
    return tuple(name for name in CONTRACTS if name in named)


def _timeframes(value: object) -> object:
    if not isinstance(value, list | tuple) or not value:
        raise expected("a list such as [3m, 5m, 15m, 1h]")
    one = "one of " + ", ".join(schema.TIMEFRAMES_MS)

    def problem(name: object) -> str | None:
        return None if isinstance(name, str) and name in schema.TIMEFRAMES_MS else one

    return each(value, problem, "each timeframe once")


def _in_order(timeframes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(timeframes, key=schema.TIMEFRAMES_MS.__getitem__))


class ExchangeSettings(Section):
    """What is collected, and from where.

    `contracts` are the types of contracts that may be collected, in the order of `CONTRACTS`.
    `archive`: whether history may come from the public archive at `archive_url`, whose terms forbid
    its use for live trading.
    `mark_price_every` is the stream's cadence, `funding_rate_every` the grid on which running funding
    rates are stored. `timeframes` are in ascending order, whatever order they were written in.
    """

    ws_url: Annotated[str, address("wss", "ws", may_have_path=False)] = "wss://fstream.binance.com"
    rest_url: Annotated[str, address("https", "http")] = "https://fapi.binance.com"
    archive: Switch = False
    archive_url: Annotated[str, address("https", "http")] = "https://data.binance.vision"
    quote: Annotated[
        str,
        Field(pattern="^[A-Z0-9]{1,16}$"),
        expecting("a quote currency in capital letters, such as USDT"),
    ] = "USDT"
    # After `quote`, in which they must be quoted and settled.
    pairs: Annotated[
        Pairs,
        PlainValidator(_pairs),
        PlainSerializer(lambda it: {"top": it.count} if isinstance(it, TopPairs) else it),
        FromText(decode_pairs),
    ] = TopPairs(164)
    contracts: Annotated[
        tuple[str, ...],
        BeforeValidator(_contracts),
        FromText(decode_list),
    ] = ("perpetual",)
    timeframes: Annotated[
        tuple[str, ...],
        AfterValidator(_in_order),
        BeforeValidator(_timeframes),
        FromText(decode_list),
    ] = ("3m", "5m", "15m", "1h")
    mark_price_every: Annotated[Duration, one_of("1s", "3s")] = Duration.parse("3s")
    funding_rate_every: Annotated[
        Duration, one_of(*_IN_A_MINUTE, why="it must divide a minute")
    ] = Duration.parse("60s")
