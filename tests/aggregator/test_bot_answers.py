"""What a bot's answer to an order means: Freqtrade's own words, and nothing that only looks like them."""

import pytest

from marketfeed.aggregator.bot_answers import PREFIX, Meaning, meaning_of

PAIR = "BTC/USDT:USDT"
OWN: dict[str, Meaning] = {
    "Force_entry not enabled.": "refused",
    "trader is not running": "paused",
    "Bot is not in the correct state": "paused",
    "Can't go short on Spot markets.": "refused",
    "Symbol does not exist or market is not active.": "refused",
    "Wrong pair selected. Only pairs with stake-currency USDT allowed.": "refused",
    f"position for {PAIR} already open - id: 12": "refused",
    f"position for {PAIR} already open - id: 12 and has open order dry_run_buy_1,77": "refused",
    "Maximum number of trades is reached.": "full",
    f"Failed to enter position for {PAIR}.": "refused",
}
"""Every RPCException of Freqtrade 2026.9's `_force_entry_validations`, `_rpc_force_entry` and `get_rpc`."""


def body(words: str, prefix: str = PREFIX) -> dict[str, str]:
    return {"error": f"{prefix}{words}"}


@pytest.mark.parametrize(("words", "meaning"), OWN.items())
def test_freqtrade_s_own_words(words: str, meaning: Meaning) -> None:
    assert meaning_of(502, body(words), PAIR) == meaning
    # At another status, of another address, with more than them, of another spelling: somebody else's.
    for status in (200, 400, 409, 500, 503, 504):
        assert meaning_of(status, body(words), PAIR) == "unknown"
    for other in (
        body(words, ""),
        body(words, "Error querying /api/v1/forceexit: "),
        body(f"{words} or so"),
        body(f" {words}"),
        body(words.swapcase()),
        body(words) | {"request_id": "1"},
        {"detail": words},
    ):
        assert meaning_of(502, other, PAIR) == "unknown"


@pytest.mark.parametrize("words", [words for words in OWN if PAIR in words])
def test_words_on_another_pair_are_of_another_order(words: str) -> None:
    assert meaning_of(502, body(words), "ETH/USDT:USDT") == "unknown"
    # A pair is no pattern.
    assert meaning_of(502, body(words), "BTC.USDT:USDT") == "unknown"


@pytest.mark.parametrize(
    "words",
    [
        "Could not create market buy order. Tried to sell amount 1 at rate 2. Message: timed out",
        "Order not found.",
        "upstream connect error or disconnect/reset before headers",
        "",
    ],
)
def test_other_words_leave_it_open(words: str) -> None:
    assert meaning_of(502, body(words), PAIR) == "unknown"


MISTAKE = {"type": "enum", "loc": ["body", "side"], "msg": "Input should be 'long'", "input": "up"}


@pytest.mark.parametrize(
    ("status", "data", "meaning"),
    [
        (200, {"trade_id": 7, "pair": PAIR}, "accepted"),
        (200, {"trade_id": 7}, "accepted"),
        (200, {"trade_id": 7, "pair": "ETH/USDT:USDT"}, "unknown"),
        (200, {"trade_id": True}, "unknown"),
        (200, {"trade_id": None}, "unknown"),
        (201, {"trade_id": 7, "pair": PAIR}, "unknown"),
        (200, {"status": f"Error entering long trade for pair {PAIR}."}, "unknown"),
        (200, None, "unknown"),
        (200, [{"trade_id": 7}], "unknown"),
        (401, {"detail": "Unauthorized"}, "barred"),
        (403, {"detail": "Forbidden"}, "barred"),
        (404, {"detail": "Not Found"}, "barred"),
        (401, {"message": "No API key found in request"}, "unknown"),
        (401, {"detail": "Unauthorized", "gateway": "eu-1"}, "unknown"),
        (403, {"detail": ""}, "unknown"),
        (404, None, "unknown"),
        (404, {"detail": ["Not Found"]}, "unknown"),
        (405, {"detail": "Method Not Allowed"}, "unknown"),
        (429, {"detail": "Too Many Requests"}, "unknown"),
        (503, {"detail": "Bot is not in the correct state."}, "unknown"),
        (422, {"detail": [MISTAKE]}, "refused"),
        (422, {"detail": [MISTAKE, "and more"]}, "unknown"),
        (422, {"detail": []}, "unknown"),
        (422, {"detail": "Unprocessable"}, "unknown"),
        (422, {"errors": [MISTAKE]}, "unknown"),
        (302, None, "unknown"),
        (307, {"detail": "Temporary Redirect"}, "unknown"),
        (500, {"detail": "Internal Server Error"}, "unknown"),
        (502, None, "unknown"),
        (502, {"error": None}, "unknown"),
    ],
)
def test_what_else_a_bot_or_a_gateway_answers(status: int, data: object, meaning: Meaning) -> None:
    assert meaning_of(status, data, PAIR) == meaning
