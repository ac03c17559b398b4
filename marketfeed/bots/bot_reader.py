"""What is asked of a bot for its records: closed trades page by page, their custom data, its config."""

import json
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec

from marketfeed.service.freqtrade_api import LOOK_ANSWER_BYTES, BotError, FreqtradeApi
from marketfeed.settings.bots import FleetBot
from marketfeed.settings.secrets import SecretSource

PAGE: Final = 100
"""Trades a page: few enough that a bot's own loop does not wait for long."""


class Page(NamedTuple):
    """Closed trades as the bot gives them, the last that closed first; `total` is how many it has.

    `behind_ms` is how far its clock is behind this host's.
    """

    rows: list[object]
    total: int | None
    behind_ms: int


class BotReader:
    """Asks one bot. Raises BotError. `now_ms` is this host's time."""

    def __init__(self, settings: FleetBot, session: aiohttp.ClientSession) -> None:
        password = SecretSource(None, settings.password_file, "password")
        self._api = FreqtradeApi(
            settings.url, settings.username, password, settings.timeout_s, session
        )

    @property
    def url(self) -> str:
        """Where its API is."""
        return self._api.url

    async def page(self, offset: int, now_ms: int) -> Page:
        """Up to `PAGE` closed trades from `offset` on."""
        # In the order of ids an old trade that closes late would shift offsets unseen.
        asked = urlencode({"limit": PAGE, "offset": offset, "order_by_id": "false"})
        data, behind_ms = await self._api.get(
            f"trades?{asked}", LOOK_ANSWER_BYTES, lambda: now_ms, _decoded
        )
        rows = data.get("trades") if isinstance(data, dict) else None
        if not isinstance(rows, list):
            raise BotError(f"{self.url}/trades: no list of trades")
        total = data.get("total_trades")
        is_total = isinstance(total, int) and not isinstance(total, bool) and total >= 0
        return Page(rows, total if is_total else None, behind_ms)

    async def custom_data(self, trade_id: int) -> object:
        """What a trade's strategy has kept of it; None: nothing, or this bot does not know the question."""
        return await self._api.asked(f"trades/{trade_id}/custom-data")

    async def lacks_stop_on_exchange(self) -> bool:
        """Whether it trades with money and keeps its stops to itself."""
        config = await self._api.asked("show_config")
        if not isinstance(config, dict):
            return False
        return config.get("dry_run") is False and config.get("stoploss_on_exchange") is False


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        # Python's own takes NaN as well, so that one such trade is named, and the others are read.
        return json.loads(body)
