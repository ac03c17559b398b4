"""A Freqtrade bot's REST API, as far as it is used here: one `forceenter`, and looking for what it led to.

What a failure means for money is decided here: `NotSentError`, not a byte of the order has left this
host; any other `BotError` after a POST, nobody knows. What an answer means, `bot_answers.py` says.
"""

from collections.abc import Callable
from typing import Annotated, Final
from urllib.parse import urlencode

import aiohttp
import msgspec

from marketfeed.aggregator.bot_answers import Meaning, meaning_of, trade_id_of, trade_side_of
from marketfeed.aggregator.bot_config import BotConfig, config_of, whitelist_of
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.aggregator.signals import Side
from marketfeed.service.freqtrade_api import (
    AnsweredError,
    BotError,
    FreqtradeApi,
    NotSentError,
    decoded,
    failure_text,
    hide,
    read_body,
    words_in,
)
from marketfeed.settings.aggregator import BotSettings
from marketfeed.settings.secrets import SecretSource

CLOSED_TRADES: Final = 100
"""How many of the newest closed trades are looked through for one of ours."""
CLOCK_TOLERANCE_MS: Final = 2_000
"""A bot's `Date` has whole seconds, and its answer travelled: trades may seem to be so much too early."""
_EXIT_TOLERANCE_MS: Final = 60_000
_OVERLAP: Final = 10
_ORDER_ANSWER_BYTES: Final = 256 * 1024


class Answer(msgspec.Struct, frozen=True):
    """A bot's answer to an order: its HTTP status and message, and what became of the order by them.

    `trade_id` is the trade that it names, and `side` that of this trade, if it says so.
    """

    status: int
    words: str
    meaning: Meaning
    trade_id: int | None = None
    side: Side | None = None


class Count(msgspec.Struct, frozen=True):
    """How many trades a bot has open, and its limit, `max_open_trades`: negative without any."""

    current: int
    max: int

    def has_room(self, unknown: int) -> bool:
        """Whether there is room for one more, each of so many unknown orders counted as a trade."""
        return self.max < 0 or self.current + unknown < self.max


class Trade(msgspec.Struct, frozen=True):
    """A trade of a bot's, open or closed. `opened_ms` is by the clock of this host.

    `added`: not the trade itself, but an order that enlarged it later, with a tag of its own.
    """

    trade_id: int
    pair: str
    side: Side
    tag: str
    opened_ms: int
    added: bool = False


class Bot(FreqtradeApi):
    """One bot, which orders are sent to."""

    def __init__(self, settings: BotSettings, session: aiohttp.ClientSession) -> None:
        if settings.url is None:
            raise ValueError("bot url: found null, expected an address")
        password = SecretSource(settings.password, settings.password_file, "password")
        super().__init__(settings.url, settings.username, password, settings.timeout_s, session)
        self._settings = settings

    def payload(self, forward: Forward) -> bytes:
        """The body of the order."""
        body: dict[str, object] = {
            "pair": forward.pair,
            "side": forward.side,
            "ordertype": forward.ordertype,
            "entry_tag": forward.tag,
        }
        if forward.leverage is not None:
            body["leverage"] = forward.leverage
        if self._settings.stakeamount is not None:
            body["stakeamount"] = self._settings.stakeamount
        if forward.price is not None:
            body["price"] = forward.price
        return msgspec.json.encode(body)

    async def enter(self, forward: Forward) -> Answer:
        """POST the order, once. Any complete answer is one, whoever gave it.

        Raises NotSentError, or BotError when it may or may not have been received.
        """
        headers = self.headers()
        try:
            async with self._session.post(
                f"{self._base}/forceenter",
                data=self.payload(forward),
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                body = await read_body(response, _ORDER_ANSWER_BYTES)
                words = hide(words_in(body), headers) or response.reason or "no words"
                data = decoded(body)
                meaning = meaning_of(response.status, data, forward.pair)
                trade_id = trade_id_of(data, forward.pair) if meaning == "accepted" else None
                return Answer(response.status, words, meaning, trade_id, trade_side_of(data))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Both are raised before a connection stands.
            raise NotSentError(failure_text(error)) from error
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise BotError(hide(failure_text(error), headers)) from error

    async def config(self) -> BotConfig:
        """What it says of itself, which needs the password. Raises BotError."""
        try:
            data, _ = await self.get("show_config", _ORDER_ANSWER_BYTES)
        except AnsweredError as error:
            if not error.says_no or error.status == 401:
                raise
            # A proxy may deny that alone: then the version shows whether it lets us in.
            await self.get("version", _ORDER_ANSWER_BYTES)
            return BotConfig()
        return config_of(data)

    async def whitelist(self) -> frozenset[str] | None:
        """The pairs on its whitelist; None: it does not say. Raises BotError."""
        return whitelist_of(await self.asked("whitelist"))

    async def last_turn(self) -> str | None:
        """When its loop last ended a turn, in its words: "" never, None: it does not say. Raises BotError."""
        found = await self.field("health", "last_process")
        return "" if found is None else found if isinstance(found, str) else None

    async def count(self) -> Count | None:
        """How many trades it has, of how many; None: it does not say. Raises BotError."""
        data = await self.asked("count")
        try:
            return msgspec.convert(data, Count)
        except msgspec.ValidationError:
            return None

    async def open_trade(self, pair: str, but: Side | None = None) -> str | None:
        """What it calls the trade of this pair that it has open; None: it has none. Raises BotError.

        One that is surely of the side `but` does not count.
        """
        rows, _ = await self.rows("status")
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("pair"), str):
                # Nobody knows of which pair that is.
                raise BotError(f"{self._base}/status: no list of trades")
            if row["pair"] == pair and (but is None or row.get("is_short") is not (but == "short")):
                return f"trade {row.get('trade_id')}"
        return None

    async def trades(self, now_ms: Callable[[], int]) -> list[Trade]:
        """All open trades and the newest closed ones, by the clock that `now_ms` reads. Raises BotError."""
        # In the order of ids, Freqtrade would give the oldest ones.
        closed = urlencode({"limit": CLOSED_TRADES, "order_by_id": "false"})
        return [
            *await self._list("status", now_ms),
            *await self._list(f"trades?{closed}", now_ms),
        ]

    async def _list(self, path: str, now_ms: Callable[[], int] = lambda: 0) -> list[Trade]:
        rows, behind_ms = await self.rows(path, now_ms)
        return [trade for row in rows for trade in _trades(row, behind_ms)]

    async def trades_since(self, since_ms: int, now_ms: Callable[[], int]) -> list[Trade]:
        """All open trades, and all that have closed since then, by the clock that `now_ms` reads.

        Raises BotError: then nothing is known.
        """
        found: dict[int, list[Trade]] = {}
        # Open ones first: one that closes in between is met twice rather than never.
        rows, behind_ms = await self.rows("status", now_ms)
        for row in rows:
            _take(found, _trades(row, behind_ms))
        offset = 0
        while True:
            # The last that closed come first. Pages overlap, as a trade may be deleted in between.
            page = urlencode({"limit": CLOSED_TRADES, "offset": offset, "order_by_id": "false"})
            rows, behind_ms = await self.rows(f"trades?{page}", now_ms)
            known = len(found)
            for row in rows:
                _take(found, _trades(row, behind_ms))
            if len(rows) < CLOSED_TRADES or _are_older(rows, since_ms - behind_ms):
                return [trade for trades in found.values() for trade in trades]
            if offset and len(found) == known:
                raise BotError(f"{self._base}/trades: the same trades again at offset {offset}")
            offset += CLOSED_TRADES - _OVERLAP


def _trades(row: object, behind_ms: int) -> list[Trade]:
    """A trade as the bot reports it, and what was added to it (`position_adjustment_enable`)."""
    try:
        found = msgspec.convert(row, _TradeRow)
    except msgspec.ValidationError:
        return []
    trade = Trade(
        found.trade_id,
        found.pair,
        "short" if found.is_short else "long",
        found.enter_tag or "",
        _bounded_ms(found.open_timestamp + behind_ms),
    )
    try:
        orders = msgspec.convert(found.orders, list[_OrderRow])
    except msgspec.ValidationError:
        orders = []
    entries = [order for order in orders if order.ft_order_side == _ENTRY[trade.side]]
    return [
        trade,
        *(
            msgspec.structs.replace(
                trade,
                tag=order.ft_order_tag or "",
                # In service the exchange's time, in a dry run the bot's: the one that is less is safe.
                opened_ms=_bounded_ms((order.order_timestamp or 0) + min(behind_ms, 0)),
                added=True,
            )
            for order in entries[1:]
        ),
    ]


def _bounded_ms(time_ms: int) -> int:
    """A time that a calendar has: one far ahead, as of another unit, counts as now wherever it is met.

    To leave such a trade out would hide it.
    """
    return min(max(time_ms, 0), _LATEST_MS)


def _take(found: dict[int, list[Trade]], trades: list[Trade]) -> None:
    """Keep the trades of a row under its id; one that was met before, as it is now."""
    if trades:
        found[trades[0].trade_id] = trades


def _are_older(rows: list[object], since_ms: int) -> bool:
    """Whether what follows these closed trades has closed before `since_ms` (by the bot's clock), too.

    Not if they are in another order, as of a Freqtrade that knows no other than by id.
    """
    try:
        closed = [row.close_timestamp for row in msgspec.convert(rows, list[_ClosedRow])]
    except msgspec.ValidationError:
        return False
    # The time of an exit is the exchange's.
    return closed == sorted(closed, reverse=True) and closed[-1] < since_ms - _EXIT_TOLERANCE_MS


_ENTRY: Final[dict[Side, str]] = {"long": "buy", "short": "sell"}


_Time = Annotated[int, msgspec.Meta(ge=0)]
_Id = Annotated[int, msgspec.Meta(gt=-(1 << 62), lt=1 << 62)]
"""As far as the ledger can hold one."""
_LATEST_MS: Final = 253_402_300_799_999
"""The last of the year 9999."""


class _TradeRow(msgspec.Struct):
    trade_id: _Id
    pair: str
    open_timestamp: _Time
    is_short: bool = False
    enter_tag: str | None = None
    orders: object = ()


class _ClosedRow(msgspec.Struct):
    close_timestamp: _Time


class _OrderRow(msgspec.Struct):
    ft_order_side: str
    order_timestamp: _Time | None = None
    ft_order_tag: str | None = None
