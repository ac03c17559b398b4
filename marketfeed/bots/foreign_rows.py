"""Foreign points of closed trades: which have a partner in the books, which can be kept. Pure.

Strategies wrote them, of which nobody knows more than what stands there.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from marketfeed.bots.closed_trade import FUTURE_MS, ROUGH, ClosedTrade, RefusedTradeError, Side
from marketfeed.schema import is_pair

PURE = True

PARTNER_MS: Final = 5_000
QUARTER_MS: Final = 900_000
"""Zones are whole quarters of an hour apart from UTC."""
FARTHEST_MS: Final = 14 * 3_600_000


class Imported(msgspec.Struct, frozen=True):
    """What foreign points are: some have a partner in the books, some of these in another zone's time.

    `trades` are to be imported; `refused` counts the others, by the reason.
    """

    partners: int
    other_zone: int
    trades: list[ClosedTrade]
    refused: dict[str, int]


def imported(
    points: Iterable[Mapping[str, Any]], known: Iterable[ClosedTrade], side: str, now_ms: int
) -> Imported:
    """Sort foreign points of a bot that trades `side`, against the trades that are `known` of it."""
    closes: dict[tuple[str, str], list[ClosedTrade]] = {}
    for trade in known:
        closes.setdefault((trade.pair, trade.side), []).append(trade)
    partners = other_zone = 0
    found: list[ClosedTrade] = []
    refused: dict[str, int] = {}
    at: dict[int, int] = {}
    for point in points:
        try:
            trade = foreign_trade(point, side, now_ms)
        except RefusedTradeError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
            continue
        near = closes.get((trade.pair, trade.side), [])
        if any(abs(one.closed_ms - trade.closed_ms) <= PARTNER_MS for one in near):
            partners += 1
        elif any(_is_in_another_zone(trade, one) for one in near):
            other_zone += 1
        else:
            # Such a trade has no id: they are counted down, so that a second import finds the same.
            at[trade.closed_ms] = number = at.get(trade.closed_ms, 0) - 1
            found.append(msgspec.structs.replace(trade, trade_id=number))
    return Imported(partners, other_zone, found, refused)


def foreign_trade(point: Mapping[str, Any], side: str, now_ms: int) -> ClosedTrade:
    """A foreign point as a trade. Raises RefusedTradeError, with words that are alike for alike points."""
    pair = point.get("pair")
    if not is_pair(pair):
        raise RefusedTradeError("pair: expected a futures pair such as BTC/USDT:USDT")
    closed_ms = int(point["time"])
    if closed_ms > now_ms + FUTURE_MS:
        raise RefusedTradeError("time: it lies ahead, as a local time without its zone does")
    leverage, profit = _number(point, "leverage"), _number(point, "close_profit")
    open_rate, close_rate = _number(point, "open_rate"), _number(point, "close_rate")
    if not 0 < leverage <= 1000 or open_rate <= 0 or close_rate <= 0:
        raise RefusedTradeError("leverage, open_rate, close_rate: expected numbers above 0")
    its_side = _side(point, side)
    way = -1.0 if its_side == "short" else 1.0
    by_rates = way * (close_rate / open_rate - 1.0)
    rough = ROUGH + abs(by_rates) / 10
    if abs(profit / leverage - by_rates) > rough:
        if abs(profit / leverage / 100 - by_rates) <= rough:
            raise RefusedTradeError("close_profit: expected a fraction; by its rates it is percent")
        raise RefusedTradeError("close_profit: expected what its rates and leverage give")
    absolute = point.get("profit_abs", point.get("close_profit_abs"))
    return ClosedTrade(
        opened_ms=closed_ms,
        trade_id=-1,
        closed_ms=closed_ms,
        pair=str(pair),
        side=its_side,
        leverage=leverage,
        open_rate=open_rate,
        close_rate=close_rate,
        close_profit=profit,
        profit_abs=float(absolute) if _is_number(absolute) else 0.0,
        enter_tag=_text(point, "enter_tag"),
        exit_reason=_text(point, "exit_reason"),
        source="imported",
    )


def _is_in_another_zone(trade: ClosedTrade, other: ClosedTrade) -> bool:
    apart_ms = abs(trade.closed_ms - other.closed_ms)
    off_ms = min(apart_ms % QUARTER_MS, -apart_ms % QUARTER_MS)
    same = math.isclose(trade.close_profit, other.close_profit, rel_tol=1e-6, abs_tol=1e-9)
    return same and apart_ms <= FARTHEST_MS + PARTNER_MS and off_ms <= PARTNER_MS


def _side(point: Mapping[str, Any], side: str) -> Side:
    said = str(point.get("side") or point.get("direction") or "").lower()
    short = point.get("is_short")
    if said in ("long", "short"):
        return "long" if said == "long" else "short"
    if short is not None:
        return "short" if short in (True, 1, "true", "True") else "long"
    if side in ("long", "short"):
        return "long" if side == "long" else "short"
    raise RefusedTradeError("side: expected long or short, as the bot trades both")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(point: Mapping[str, Any], name: str) -> float:
    value = point.get(name)
    if not _is_number(value):
        raise RefusedTradeError(f"{name}: expected a finite number")
    return float(value)  # type: ignore[arg-type]


def _text(point: Mapping[str, Any], name: str) -> str:
    value = point.get(name)
    return value if isinstance(value, str) else ""
