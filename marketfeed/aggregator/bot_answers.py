"""What a bot's answer to an order means for it: only Freqtrade's own words are believed. Pure.

The words are those of Freqtrade 2026.9 (`rpc.py`: `_force_entry_validations`, `_rpc_force_entry`; `deps.py`).
Each is an RPCException, which ends the request before an order was made, or after one of which nothing was
filled; `webserver.py` answers it with 502 and `{"error": "Error querying /api/v1/forceenter: WORDS"}`. Any
other exception, also one that comes when the order is at the exchange, is a plain 500. 200 without a trade
comes when a trade was made and closed at once. A gateway in between answers in its own words, whatever the
bot has done.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

PURE = True

Meaning = Literal["accepted", "refused", "full", "paused", "barred", "unknown"]
"""accepted: a trade is open. unknown: nobody knows. By all others surely nothing was opened: refused, the
bot will not have this order; full, it has no room for another trade; paused, it takes no orders now; barred,
it does not let us in, or this is not its address."""

PREFIX: Final = "Error querying /api/v1/forceenter: "
"""How the `error` of Freqtrade's own 502 begins."""
FULL: Final = "Maximum number of trades is reached."
PAUSED: Final = ("trader is not running", "Bot is not in the correct state")
NOT_ENABLED: Final = "Force_entry not enabled."
USUAL: Final = (
    "position for {pair} already open - id: {number}",
    "position for {pair} already open - id: {number} and has open order {word}",
    # No stake, the strategy's no, an order of which nothing was filled, or an open one that stays as it is.
    "Failed to enter position for {pair}.",
)
"""Refusals as they come in service."""
REFUSED: Final = (
    NOT_ENABLED,
    "Can't go short on Spot markets.",
    "Symbol does not exist or market is not active.",
    "Wrong pair selected. Only pairs with stake-currency {word} allowed.",
    *USUAL,
)
"""`{pair}` is the pair of the order: what is said of another one was not said of this."""
Refusal = Literal["usual", "every order", "other"]
"""What a refusal says of the bot: nothing, that it takes no order at all, or that it is set up wrongly."""
Count = Literal[
    "full", "already open", "not entered", "rights", "force entry off", "paused", "other"
]
"""As what an answer that is no trade is counted. rights: 401, 403 or 404."""
COUNTS: Final[tuple[Count, ...]] = (
    *("full", "already open", "not entered", "rights", "force entry off", "paused", "other"),
)
_PARTS: Final[Mapping[str, str]] = MappingProxyType({"{number}": "[0-9]+", "{word}": r"\S+"})


def meaning_of(status: int, data: object, pair: str) -> Meaning:
    """What an answer means for an order of `pair`: its HTTP status, and its body decoded, None if no JSON."""
    if not isinstance(data, dict):
        return "unknown"
    if status == 200:
        return "accepted" if trade_id_of(data, pair) is not None else "unknown"
    if status == 502 and isinstance(error := data.get("error"), str) and len(data) == 1:
        return _of_words(error, pair)
    if status in (401, 403, 404) and _is_detail(data):
        return "barred"
    if status == 422 and _is_list_of_mistakes(data):
        return "refused"
    return "unknown"


def refusal_of(words: str, pair: str) -> Refusal:
    """What the words with which an order of `pair` was refused say of the bot."""
    words = words.removeprefix(PREFIX)
    if words == NOT_ENABLED:
        return "every order"
    return "usual" if any(_is(words, template, pair) for template in USUAL) else "other"


def count_of(meaning: Meaning, words: str, pair: str) -> Count | None:
    """As what an answer to an order of `pair` is counted; None: it is a trade, or nobody knows."""
    if meaning in ("accepted", "unknown"):
        return None
    if meaning == "barred":
        return "rights"
    if meaning in ("full", "paused"):
        return meaning
    words = words.removeprefix(PREFIX)
    if words == NOT_ENABLED:
        return "force entry off"
    if any(_is(words, template, pair) for template in USUAL[:-1]):
        return "already open"
    return "not entered" if _is(words, USUAL[-1], pair) else "other"


def trade_side_of(data: object) -> Literal["long", "short"] | None:
    """The side of the trade that an answer names; None: it does not say."""
    found = data.get("is_short") if isinstance(data, dict) else None
    if not isinstance(found, bool):
        return None
    return "short" if found else "long"


def trade_id_of(data: object, pair: str) -> int | None:
    """The trade of `pair` that an answer names; None: it names none."""
    if not isinstance(data, dict) or data.get("pair", pair) != pair:
        return None
    found = data.get("trade_id")
    if not isinstance(found, int) or isinstance(found, bool):
        return None
    # One that the ledger cannot hold is none.
    return found if abs(found) < 1 << 63 else None


def _of_words(error: str, pair: str) -> Meaning:
    if not error.startswith(PREFIX):
        return "unknown"
    words = error.removeprefix(PREFIX)
    if words == FULL:
        return "full"
    if words in PAUSED:
        return "paused"
    return "refused" if any(_is(words, template, pair) for template in REFUSED) else "unknown"


def _is(words: str, template: str, pair: str) -> bool:
    parts = re.split(r"(\{[a-z]+\})", template)
    pattern = "".join(
        re.escape(pair) if part == "{pair}" else _PARTS.get(part, re.escape(part)) for part in parts
    )
    return re.fullmatch(pattern, words) is not None


def _is_detail(data: dict[Any, Any]) -> bool:
    """Whether it is what FastAPI answers to a password or an address: `{"detail": "Unauthorized"}`."""
    return len(data) == 1 and isinstance(detail := data.get("detail"), str) and bool(detail)


def _is_list_of_mistakes(data: dict[Any, Any]) -> bool:
    """Whether it is FastAPI's list of what is wrong with a body: it has not come to the bot's code."""
    mistakes = data.get("detail")
    return (
        len(data) == 1
        and isinstance(mistakes, list)
        and bool(mistakes)
        and all(isinstance(one, dict) and {"type", "loc", "msg"} <= one.keys() for one in mistakes)
    )
