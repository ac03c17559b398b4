"""Which trades of a bot's were opened by an order of ours that the ledger does not know.

Such a trade means that the ledger was lost, or is an older copy: more may have been sent than stands in it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from marketfeed.aggregator.freqtrade_bot import CLOCK_TOLERANCE_MS, Trade
from marketfeed.aggregator.ledger_tables import Forward
from marketfeed.schema import DAY_MS


def unknown_trades(
    trades: Iterable[Trade], forwards: Sequence[Forward], now_ms: int
) -> list[Trade]:
    """Those of `trades`, of one bot, that none of its `forwards` explains. Each explains one at the most.

    First a forward explains the trade that it names, then one that opened while it was at work; of several
    the nearest in time.
    """
    free: dict[tuple[str, str], list[Forward]] = defaultdict(list)
    for forward in forwards:
        if forward.sent_ms is not None:
            free[forward.pair, forward.tag].append(forward)
    left = dict(enumerate(trades))
    alike: dict[tuple[str, str], dict[int, Trade]] = defaultdict(dict)
    for index, trade in left.items():
        alike[trade.pair, trade.tag][index] = trade
    for name, found in alike.items():
        for index in _explained(found, free.get(name, []), now_ms):
            del left[index]
    return list(left.values())


def _explained(trades: dict[int, Trade], forwards: list[Forward], now_ms: int) -> set[int]:
    """Which of these trades are explained, all of one pair and tag: such are few."""
    done, used = set[int](), set[int]()
    for explains in (_names, _may_have_opened):
        pairs = [
            (_apart_ms(forward, trade), index, number)
            for index, trade in trades.items()
            for number, forward in enumerate(forwards)
            if index not in done and number not in used and explains(forward, trade, now_ms)
        ]
        for _, index, number in sorted(pairs):
            if index not in done and number not in used:
                done.add(index)
                used.add(number)
    return done


def _names(forward: Forward, trade: Trade, _now_ms: int) -> bool:
    # A bot with a fresh database counts anew. Within a day, whatever the clocks did.
    return (
        forward.state in ("accepted", "found")
        and forward.trade_id == trade.trade_id
        and _apart_ms(forward, trade) < DAY_MS
    )


def _may_have_opened(forward: Forward, trade: Trade, now_ms: int) -> bool:
    """Whether it opened while this one was at work, as far as that is known."""
    if forward.sent_ms is None or forward.state in ("queued", "refused", "expired"):
        return False
    if forward.sent_ms > now_ms:
        # By a clock that was ahead: nobody knows when.
        return True
    until_ms = now_ms if forward.answered_ms is None else forward.answered_ms
    return forward.sent_ms - CLOCK_TOLERANCE_MS <= trade.opened_ms <= until_ms + CLOCK_TOLERANCE_MS


def _apart_ms(forward: Forward, trade: Trade) -> int:
    return abs((forward.sent_ms or 0) - trade.opened_ms)
