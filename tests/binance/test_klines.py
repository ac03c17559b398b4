"""Which rows of REST's klines have closed: whatever `time` tells, and however far its servers are behind."""

import json
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from marketfeed.binance.klines import FOLLOWED_AFTER_MS, Past, read_klines
from marketfeed.binance.odd_rows import Klines, klines_of
from marketfeed.binance.symbols import Instrument
from marketfeed.errors import OddAnswerError
from marketfeed.grid import TimeRange
from marketfeed.schema import DAY_MS, MINUTE_MS, floor_to

BITCOIN = Instrument("BTCUSDT", "BTC/USDT:USDT", "USDT", "TRADING", "PERPETUAL", 0, 0)
T0 = 1_790_000_160_000
ROWS = 8


def row(open_ms: int) -> list[object]:
    return [open_ms, "2", "3", "1", "2.5", "4", open_ms + MINUTE_MS - 1, "8", 7, "2", "4", "0"]


def answered(
    true_ms: int, past: Past, within: TimeRange, *, behind_ms: int = 0, rows: Sequence[object] = ()
) -> Klines:
    """What is made of the answer of servers that have come to `true_ms` less `behind_ms`.

    Rows stand there up to the one that forms; `rows` is another answer.
    """
    newest_ms = floor_to(true_ms - behind_ms, MINUTE_MS)
    asked_end_ms = within.end_ms + MINUTE_MS * (not past.is_certain(within.end_ms))
    opens = range(within.start_ms, min(newest_ms + 1, asked_end_ms), MINUTE_MS)
    body = json.dumps(rows or [row(open_ms) for open_ms in opens]).encode()
    found, closed_ms = read_klines(body, BITCOIN, "1m", within, past)
    return klines_of(found, within, MINUTE_MS, closed_ms)


def opens_of(found: Klines) -> list[int]:
    return [one.open_time_ms for one in found.candles]


WITHIN = TimeRange(T0, T0 + ROWS * MINUTE_MS)
TIMES = st.integers(-2 * MINUTE_MS, (ROWS + 3) * MINUTE_MS).map(lambda at: T0 + at)
WRONG = st.one_of(st.just(0), st.integers(-5_000, 5_000), st.integers(-DAY_MS, DAY_MS))


@given(TIMES, st.integers(1, DAY_MS), WRONG, st.one_of(st.just(0), st.integers(0, DAY_MS)))
@example(T0 + 5 * MINUTE_MS + 4_000, 10 * MINUTE_MS, 0, 0)
@example(T0 + 5 * MINUTE_MS + 4_000, 10 * MINUTE_MS, DAY_MS, 0)
@example(T0 + 5 * MINUTE_MS + 4_000, 10 * MINUTE_MS, 0, 2 * MINUTE_MS)
def test_what_forms_is_neither_closed_nor_absent(
    true_ms: int, lag_ms: int, wrong_ms: int, behind_ms: int
) -> None:
    """Frames lag by `lag_ms`, `time` is `wrong_ms` off and was twice, klines are `behind_ms`."""
    certain_ms = true_ms - lag_ms
    past = Past(certain_ms, max(certain_ms, true_ms + wrong_ms))
    # By frames what has closed has: servers that are behind these are not believed to be.
    reached_ms = min(true_ms, max(certain_ms, true_ms - behind_ms))
    found = answered(true_ms, past, WITHIN, behind_ms=true_ms - reached_ms)
    for one in found.candles:
        assert one.close_time_ms <= reached_ms
    for open_ms in range(WITHIN.start_ms, WITHIN.end_ms, MINUTE_MS):
        unclear = any(part.start_ms <= open_ms < part.end_ms for part in found.unclear)
        assert unclear == (open_ms not in opens_of(found))


@given(TIMES, st.integers(1, DAY_MS))
def test_what_another_row_follows_is_had_though_frames_lag(true_ms: int, lag_ms: int) -> None:
    found = answered(true_ms, Past(true_ms - lag_ms, true_ms), WITHIN)
    due = range(WITHIN.start_ms, WITHIN.end_ms, MINUTE_MS)
    assert opens_of(found) == [
        open_ms
        for open_ms in due
        if open_ms + MINUTE_MS <= true_ms - min(FOLLOWED_AFTER_MS, lag_ms + 1_000)
    ]


SPOILT = st.sampled_from(
    [None, [], ["x"], [T0, "NaN"], row(T0 + 1), row(T0 + DAY_MS), row(T0 - MINUTE_MS), "row"]
)


@given(st.lists(st.one_of(SPOILT, st.integers(0, ROWS + 1)), max_size=ROWS + 2), st.data())
def test_a_spoilt_answer_closes_nothing_that_forms(
    drawn: Sequence[object], data: st.DataObject
) -> None:
    """Whatever rows are there, in whatever order: of what no good row follows nothing has closed."""
    rows = [row(T0 + one * MINUTE_MS) if isinstance(one, int) else one for one in drawn]
    good = [one for one in drawn if isinstance(one, int)]
    confirmed_ms = data.draw(TIMES)
    past = Past(T0 - DAY_MS, confirmed_ms)
    try:
        found = answered(confirmed_ms, past, WITHIN, rows=rows or [None])
    except OddAnswerError:
        return
    newest_ms = T0 + max(good, default=0) * MINUTE_MS
    for open_ms in opens_of(found):
        assert open_ms < newest_ms
        assert open_ms + MINUTE_MS <= confirmed_ms - FOLLOWED_AFTER_MS


def test_a_row_that_was_asked_for_to_follow_may_have_closed_meanwhile() -> None:
    asked = [row(open_ms) for open_ms in range(T0, WITHIN.end_ms + 1, MINUTE_MS)]
    body = json.dumps(asked).encode()
    after_ms = WITHIN.end_ms + 5 * MINUTE_MS
    rows, closed_ms = read_klines(body, BITCOIN, "1m", WITHIN, Past(after_ms, after_ms))
    assert not rows.odd
    found = klines_of(rows, WITHIN, MINUTE_MS, closed_ms)
    assert opens_of(found) == list(range(T0, WITHIN.end_ms, MINUTE_MS))
    assert found.unclear == []


def test_nothing_has_closed_while_nothing_is_certain() -> None:
    found = answered(WITHIN.end_ms + DAY_MS, Past(0, 0), WITHIN)
    assert (found.candles, found.unclear) == ([], [WITHIN])
