"""A closed trade of a Freqtrade bot: its record, and how it is read from the bot's JSON. Pure.

Profits are fractions. `close_profit` is the bot's own: leveraged, both fees and funding in it; at the level
of the position it is `close_profit / leverage`. Times are ms since the epoch (UTC). Fields as in
Freqtrade 2026.9 (`persistence/trade_model.py`, `to_json`).
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeGuard

import msgspec

from marketfeed.schema import is_pair

PURE = True

Side = Literal["long", "short"]
FUTURE_MS: Final = 60_000
"""A bot's clock and this host's may differ by so much, which `Date` shows no better than to a second."""
STAMPS_APART_MS: Final = 1_500
"""`open_date` has whole seconds."""
ROUGH: Final = 0.05
"""What fees and rounding may be of a position's profit: 5 % of its value."""
EXITS_KEY: Final = "marketfeed_exits"
"""Under which the exits' mixin keeps in a trade's custom data by what it was to be closed."""
_LATEST_MS: Final = 253_402_300_799_999
_TAG: Final = re.compile(
    r"(?:long|short) ensemble ([0-9]{1,6})/([0-9]{1,6})(?: (.*))?", re.ASCII | re.DOTALL
)
_CONFIDENCE: Final = re.compile(r"(?:^|\s)conf=([0-9]*\.?[0-9]+)(?=\s|$)")
_PRIMARY: Final = re.compile(r"(?:^|\s)from=([A-Za-z0-9_.-]{1,32})(?=\s|$)")


class RefusedTradeError(ValueError):
    """A trade cannot be recorded. The text names the field, what was found and what is expected."""


class Exits(msgspec.Struct, frozen=True):
    """By what a trade was to be closed: stop and target as fractions of the position, and where from."""

    stop: float | None = None
    target: float | None = None
    source: str = ""


class Votes(msgspec.Struct, frozen=True):
    """What the tag of an aggregator's order says: votes, of how many, confidence, primary feeder."""

    votes: float | None = None
    of: float | None = None
    confidence: float | None = None
    primary: str = ""


class ClosedTrade(msgspec.Struct, frozen=True):
    """A closed trade as its bot reports it. (opened_ms, trade_id) is what it is known by in a bot's records.

    `fees` are both fees in the stake's currency, `funding_fees` as the bot counts them, `duration_s` from
    opening to close. `mae` and `mfe` are the worst and the best polled price while it was open, as fractions
    of the opening one, toward the trade. `stop` and `target` come from the custom data, `feeders` from the
    aggregator's ledger; what is None or empty is not known.
    """

    opened_ms: int
    trade_id: int
    closed_ms: int
    pair: str
    side: Side
    leverage: float
    open_rate: float
    close_rate: float
    close_profit: float
    profit_abs: float
    fees: float | None = None
    funding_fees: float | None = None
    mae: float | None = None
    mfe: float | None = None
    stop: float | None = None
    target: float | None = None
    votes: float | None = None
    of: float | None = None
    confidence: float | None = None
    enter_tag: str = ""
    exit_reason: str = ""
    source: str = ""
    primary: str = ""
    feeders: str = ""

    @property
    def key(self) -> tuple[int, int]:
        """What it is known by: ids begin anew with a new database of the bot."""
        return self.opened_ms, self.trade_id

    @property
    def position_profit(self) -> float:
        """The profit without leverage."""
        return self.close_profit / self.leverage

    @property
    def duration_s(self) -> float:
        """How long it was open."""
        return (self.closed_ms - self.opened_ms) / 1000

    def with_exits(self, exits: Exits) -> "ClosedTrade":
        """The same with what the custom data says."""
        return msgspec.structs.replace(
            self, stop=exits.stop, target=exits.target, source=exits.source
        )


def closed_trade(row: object, now_ms: int) -> ClosedTrade:
    """The record of a row of `/trades`; `now_ms` is the bot's time. Raises RefusedTradeError."""
    if not isinstance(row, dict):
        raise RefusedTradeError(f"trade: found {type(row).__name__}, expected an object")
    trade_id = row.get("trade_id")
    if not _is_whole(trade_id) or not 0 <= trade_id < 1 << 62:
        raise _wrong("trade_id", trade_id, "a whole number")
    if row.get("is_open") not in (False, None):
        raise _wrong("is_open", row["is_open"], "false, as of a closed trade")
    pair = row.get("pair")
    if not is_pair(pair):
        raise _wrong("pair", pair, "a futures pair such as BTC/USDT:USDT")
    is_short = row.get("is_short", False)
    if not isinstance(is_short, bool):
        raise _wrong("is_short", is_short, "true or false")
    opened_ms, closed_ms = _time(row, "open", now_ms), _time(row, "close", now_ms)
    if closed_ms < opened_ms:
        apart_h = (opened_ms - closed_ms) / 3_600_000
        raise _wrong(
            "close_timestamp", closed_ms, f"not {apart_h:.1f} h before open_timestamp {opened_ms}"
        )
    leverage = _number(row, "leverage", 1.0)
    if not 0 < leverage <= 1000:
        raise _wrong("leverage", leverage, "a number above 0")
    trade = ClosedTrade(
        opened_ms=opened_ms,
        trade_id=trade_id,
        closed_ms=closed_ms,
        pair=str(pair),
        side="short" if is_short else "long",
        leverage=leverage,
        open_rate=_rate(row, "open_rate"),
        close_rate=_rate(row, "close_rate"),
        close_profit=_number(row, "close_profit"),
        profit_abs=_number(row, "close_profit_abs"),
        fees=_sum(_perhaps(row, "fee_open_cost"), _perhaps(row, "fee_close_cost")),
        funding_fees=_perhaps(row, "funding_fees"),
        enter_tag=_text(row, "enter_tag"),
        exit_reason=_text(row, "exit_reason"),
    )
    _require_fraction(trade, row)
    said = votes_in(trade.enter_tag)
    mae, mfe = _excursions(trade, _perhaps(row, "min_rate"), _perhaps(row, "max_rate"))
    return msgspec.structs.replace(
        trade,
        mae=mae,
        mfe=mfe,
        votes=said.votes,
        of=said.of,
        confidence=said.confidence,
        primary=said.primary,
    )


def name_of(row: object) -> str:
    """What a row that is refused is called."""
    found = row.get("trade_id") if isinstance(row, dict) else None
    return f"trade {found}" if _is_whole(found) else "a trade without an id"


def votes_in(tag: str) -> Votes:
    """What the tag of an aggregator's order says; nothing of another tag."""
    found = _TAG.fullmatch(tag)
    if found is None:
        return Votes()
    more = found[3] or ""
    confidence, primary = _CONFIDENCE.search(more), _PRIMARY.search(more)
    return Votes(
        float(found[1]),
        float(found[2]),
        None if confidence is None else float(confidence[1]),
        "" if primary is None else primary[1],
    )


def exits_in(answer: object, trade_id: int) -> Exits:
    """What the answer of `/trades/{id}/custom-data` says of a trade's exits; nothing: it has none there.

    Raises RefusedTradeError when it has them, and they are no fractions.
    """
    if not isinstance(answer, list):
        return Exits()
    for trade in answer:
        if not isinstance(trade, dict) or trade.get("trade_id", trade_id) != trade_id:
            continue
        entries = trade.get("custom_data")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("key") == EXITS_KEY:
                return _exits(entry.get("value"))
    return Exits()


def _exits(value: object) -> Exits:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise _wrong(EXITS_KEY, value, "a JSON object") from None
    if not isinstance(value, dict):
        raise _wrong(EXITS_KEY, value, "an object")
    stop, target = _perhaps(value, "stop"), _perhaps(value, "target")
    for name, found in (("stop", stop), ("target", target)):
        if found is not None and abs(found) > 1:
            # 1.48 % is 0.0148: nobody stops at 148 % of a position.
            raise _wrong(f"{EXITS_KEY}.{name}", found, "a fraction of the position, no percent")
    return Exits(stop, target, _text(value, "source"))


def _time(row: Mapping[str, Any], name: str, now_ms: int) -> int:
    """`open` or `close` of a row, ms. A naive local time taken as UTC lies in the future, or apart."""
    field = f"{name}_timestamp"
    found = row.get(field)
    if not _is_whole(found) or not 0 < found <= _LATEST_MS:
        raise _wrong(field, found, "ms since the epoch")
    time_ms = int(found)
    if time_ms > now_ms + FUTURE_MS:
        ahead_h = (time_ms - now_ms) / 3_600_000
        raise _wrong(
            field,
            time_ms,
            f"a time in UTC; it lies {ahead_h:.1f} h ahead, as a local time without its zone does",
        )
    said = row.get(f"{name}_date")
    if isinstance(said, str):
        said_ms = _said_ms(said)
        if said_ms is None:
            raise _wrong(f"{name}_date", said, "a date such as 2026-11-30 17:00:00")
        if abs(said_ms - time_ms) > STAMPS_APART_MS:
            apart_h = (said_ms - time_ms) / 3_600_000
            raise _wrong(
                f"{name}_date", said, f"the time of {field} in UTC; they are {apart_h:.1f} h apart"
            )
    return time_ms


def _said_ms(text: str) -> int | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    # Freqtrade writes UTC without its zone.
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return int(found.timestamp() * 1000)


def _require_fraction(trade: ClosedTrade, row: Mapping[str, Any]) -> None:
    """Raise RefusedTradeError when a profit is in percent: it would be taken for a hundred times as much."""
    profit = trade.close_profit
    what = "a fraction (0.03 for 3 %), no percent"
    said = _perhaps(row, "close_profit_pct")
    if said is not None and abs(profit) > 1e-4 and abs(said - profit) < 0.006 < abs(said / 100):
        # Freqtrade itself says the percent in `close_profit_pct`, with two decimals.
        raise _wrong("close_profit", profit, f"{what}: close_profit_pct is {said}")
    if said is not None:
        # After partial exits the last rate says little of the whole.
        return
    way = -1.0 if trade.side == "short" else 1.0
    by_rates = way * (trade.close_rate / trade.open_rate - 1.0)
    rough = ROUGH + abs(by_rates) / 10
    position = trade.position_profit
    if abs(position - by_rates) > rough and abs(position / 100 - by_rates) <= rough < abs(position):
        raise _wrong(
            "close_profit", profit, f"{what}: by its rates it is {by_rates:.4f} x leverage"
        )


def _excursions(
    trade: ClosedTrade, low: float | None, high: float | None
) -> tuple[float | None, float | None]:
    if not low or not high or low < 0 or high < low:
        return None, None
    down, up = low / trade.open_rate - 1.0, high / trade.open_rate - 1.0
    return (down, up) if trade.side == "long" else (-up, -down)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(row: Mapping[str, Any], name: str, without: float | None = None) -> float:
    found = row.get(name)
    if found is None and without is not None:
        return without
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise _wrong(name, found, "a finite number")
    return float(found)


def _perhaps(row: Mapping[str, Any], name: str) -> float | None:
    return None if row.get(name) is None else _number(row, name)


def _rate(row: Mapping[str, Any], name: str) -> float:
    found = _number(row, name)
    if found <= 0:
        raise _wrong(name, found, "a price above 0")
    return found


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None and second is None else (first or 0.0) + (second or 0.0)


def _text(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _wrong(name, found, "a text")
    return found


def _wrong(field: str, found: object, what: str) -> RefusedTradeError:
    shown = "nothing" if found is None else repr(found)
    return RefusedTradeError(f"{field}: found {shown[:80]}, expected {what}")
