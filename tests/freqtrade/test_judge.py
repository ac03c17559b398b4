"""The judges of the proofs of forwards: each finds the mistake that is planted, and nothing in a good run."""

from typing import Any

import msgspec
import pytest

from tests.freqtrade.judge import (
    FORCEENTER,
    NO_ROOM,
    Decided,
    Opened,
    Posted,
    ends_wrongly,
    opposite,
    orders_of,
    sent_twice,
    traded_twice,
    worse_first,
    wrong_cooldowns,
)

PAIR = "BTC/USDT:USDT"
COOLDOWN_MS = 300_000


def decided(window: int = 1, at_ms: int = 1_000, **changes: Any) -> Decided:
    given: dict[str, Any] = {
        "pair": PAIR, "side": "long", "opened_ms": at_ms - 500, "decided_ms": at_ms,
        "tag": f"tag {window}", "state": "accepted", "sent_ms": at_ms + 10, "changed_ms": at_ms + 300,
    }  # fmt: skip
    return Decided(window=window, **(given | changes))


def posted(window: int = 1, at_ms: int = 1_010, **changes: Any) -> Posted:
    given: dict[str, Any] = {
        "pair": PAIR, "side": "long", "tag": f"tag {window}", "done_ms": at_ms + 200
    }  # fmt: skip
    return Posted(at_ms=at_ms, **(given | changes))


def opened(window: int = 1, at_ms: int = 1_100, **changes: Any) -> Opened:
    given: dict[str, Any] = {
        "bot": "long", "trade_id": window, "pair": PAIR, "side": "long", "tag": f"tag {window}"
    }  # fmt: skip
    return Opened(opened_ms=at_ms, **(given | changes))


def full(window: int, at_ms: int) -> Posted:
    return posted(window, at_ms, status=502, words=FORCEENTER + NO_ROOM)


def test_an_order_belongs_to_the_newest_decision_with_its_tag() -> None:
    two = [decided(1, 1_000, tag="same"), decided(2, 9_000, tag="same")]
    orders, found = orders_of(
        two, [posted(at_ms=9_010, tag="same"), posted(at_ms=1_010, tag="same")]
    )
    assert {window: len(posts) for window, posts in orders.items()} == {1: 1, 2: 1}
    assert found == []
    _, found = orders_of(two, [posted(at_ms=990, tag="same"), posted(at_ms=9_010, tag="other")])
    assert len(found) == 2


@pytest.mark.parametrize(
    ("answer", "findings"),
    [
        ({"status": 502, "words": FORCEENTER + NO_ROOM}, 0),
        ({"status": 502, "words": FORCEENTER + "trader is not running"}, 0),
        ({"status": 401, "words": "detail: Unauthorized"}, 0),
        ({"status": 401, "words": "<html>Unauthorized</html>"}, 1),
        ({"status": 502, "words": NO_ROOM}, 1),
        ({"status": 502, "words": FORCEENTER + "upstream"}, 1),
        ({"status": 502, "words": "<html>502 Bad Gateway</html>"}, 1),
        ({"status": 0, "fault": "cut"}, 1),
        ({"status": 200}, 1),
    ],
)
def test_only_the_bots_own_word_lets_an_order_be_sent_again(
    answer: dict[str, Any], findings: int
) -> None:
    one = decided()
    posts = [posted(at_ms=1_010, **answer), posted(at_ms=3_000)]
    assert len(sent_twice([one], {1: posts})) == findings


def test_two_trades_within_a_cooldown() -> None:
    assert traded_twice([opened(1, 0), opened(2, COOLDOWN_MS)], COOLDOWN_MS) == []
    assert traded_twice([opened(1, 0), opened(2, 9_000, bot="short")], COOLDOWN_MS) == []
    assert len(traded_twice([opened(1, 0), opened(2, 200_000)], COOLDOWN_MS)) == 1


def test_ends_are_true() -> None:
    good = [
        decided(1),
        decided(2, state="expired", answer="too late"),
        decided(3, state="", outcome="skip", reasons="2 of 5 votes"),
    ]
    assert ends_wrongly(good, [opened(1)]) == []
    bad = {
        "no end": ([decided(1, state="unknown")], []),
        "no reason": ([decided(1, state="expired", answer="")], []),
        "decided without one": ([decided(1, state="", outcome="skip", reasons="")], []),
        "accepted without a trade": ([decided(1)], []),
        "lost with a trade": ([decided(1, state="lost", answer="?")], [opened(1)]),
        "refused with a trade": ([decided(1, state="refused", answer="?")], [opened(1)]),
        "two trades": ([decided(1)], [opened(1), opened(1, trade_id=2)]),
        "whose trade": ([], [opened(1)]),
    }
    assert {name: len(ends_wrongly(*case)) for name, case in bad.items()} == dict.fromkeys(bad, 1)


def test_both_sides_within_a_window() -> None:
    def sent(gap_ms: int, **changes: Any) -> int:
        two = [decided(1), decided(2, 1_000 + gap_ms, **({"side": "short"} | changes))]
        return len(opposite(two, {1: [posted(1)], 2: [posted(2)]}, 60_000))

    assert (sent(59_999), sent(60_000)) == (1, 0)
    assert sent(1_000, side="long") == sent(1_000, pair="ETH/USDT:USDT") == 0
    assert opposite([decided(1), decided(2, side="short")], {1: [posted(1)]}, 60_000) == []


def test_cooldowns_follow_from_outcomes() -> None:
    def findings(first: dict[str, Any], at_ms: int, **second: Any) -> int:
        two = [decided(1, **first), decided(2, at_ms, **second)]
        trades = [opened(1, 5_000, trade_id=7)]
        return len(wrong_cooldowns(two, trades, COOLDOWN_MS))

    held = {"outcome": "skip", "reasons": "cool-down for another 10.0 s", "state": ""}
    gone = {"state": "expired", "changed_ms": 31_000}
    assert findings({}, 200_000) == 1
    assert findings({}, 200_000, **held) == 0
    assert findings({}, 302_000) == 0
    assert findings({}, 304_000, **held) == 1
    # Nothing was opened: nothing holds.
    assert findings(gone, 40_000) == 0
    assert findings(gone, 40_000, **held) == 1
    assert findings(gone, 20_000, **held) == 0
    # Of a found order from the trade's opening.
    assert findings({"state": "found", "trade_id": 7}, 302_500) == 1
    assert findings({"state": "lost"}, 200_000) == 1
    # Another side has its own.
    assert findings({}, 200_000, side="short") == 0


def test_the_best_is_sent_first() -> None:
    weak = decided(1, 1_000, votes=3, pair="A")
    strong = decided(2, 1_000, votes=5, pair="B", changed_ms=9_000)

    def findings(orders: dict[int, list[Posted]], *ones: Decided) -> int:
        return len(worse_first(ones or (weak, strong), orders))

    assert findings({1: [posted(1, 1_500)], 2: [posted(2, 1_200)]}) == 0
    assert findings({1: [posted(1, 1_200)], 2: [posted(2, 1_500)]}) == 1
    # It was decided a moment before, or after: nobody could know it.
    late = decided(2, 1_170, votes=5)
    assert findings({1: [posted(1, 1_200)], 2: [posted(2, 1_500)]}, weak, late) == 0
    # Expired before, or while it waited.
    for changed_ms, count in ((1_100, 0), (1_300, 1)):
        ended = decided(2, votes=5, state="expired", changed_ms=changed_ms)
        assert findings({1: [posted(1, 1_200)]}, weak, ended) == count
    # Sent back for want of room, and overtaken.
    overtaken = {2: [full(2, 1_100), posted(2, 5_000)], 1: [posted(1, 2_000)]}
    assert findings(overtaken) == 1
    assert findings({2: [full(2, 1_100), posted(2, 5_000)], 1: [posted(1, 6_000)]}) == 0
    # Refused for good: it does not wait.
    over = full(2, 1_100)
    assert findings({2: [posted(2, 1_100)], 1: [posted(1, 2_000)]}) == 0
    assert over.sent_back


def test_confidence_and_age_decide_between_equals() -> None:
    old = decided(1, 1_000)
    young = decided(2, 1_100)
    sure = decided(3, 1_100, confidence=0.95)

    def findings(first: Decided, then: Decided) -> int:
        orders = {
            first.window: [posted(first.window, 2_000)],
            then.window: [posted(then.window, 3_000)],
        }
        return len(worse_first((first, then), orders))

    assert [findings(old, young), findings(young, old)] == [0, 1]
    assert [findings(sure, old), findings(old, sure)] == [0, 1]
    # Another bot's queue is its own.
    assert findings(young, msgspec.structs.replace(old, side="short")) == 0
