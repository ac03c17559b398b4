"""The judge of `mixed_collectors`: right answers pass, and each wrong one is found."""

import copy
from collections.abc import Callable
from typing import Any, Final

import pytest

from marketfeed.schema import HOUR_MS, MINUTE_MS, REGULAR, SPECIAL, TIMEFRAMES_MS
from tests.upgrade import mixed_plan
from tests.upgrade.mixed_judge import as_alone, new_reader, old_reader
from tests.upgrade.mixed_plan import (
    BOTH,
    DROPPED,
    ENDING,
    HOURLY,
    PAIRS,
    REUSED,
    STEADY,
    TIMEFRAMES,
    Plan,
    problem,
)
from tests.upgrade.mixed_truth import Known, contracts, symbol

PLAN: Final = Plan(60, 15.0, 30.0)
LISTED_MS: Final = {symbol(pair): 1_600_000_000_000 for pair in PAIRS}
NOW_MS: Final = PLAN.end_ms + 20_000
Answer = dict[str, Any]


def exchange() -> Known:
    known = Known(contracts(PLAN, LISTED_MS))
    for (pair, timeframe), rows in known.candles.items():
        length_ms = TIMEFRAMES_MS[timeframe]
        for open_ms in range(PLAN.since_ms, PLAN.end_ms, length_ms):
            if known.life_at(pair, timeframe, open_ms) is not None:
                rows[open_ms] = (1.0, 2.0, 0.5, 1.5, open_ms / length_ms % 97)
    for pair, settled in known.settled.items():
        hours = 1 if pair == HOURLY else 8
        for at_ms in range(PLAN.full_ms - hours * HOUR_MS, PLAN.end_ms, hours * HOUR_MS):
            if PLAN.since_ms <= at_ms and known.life_at(pair, "1m", at_ms) is not None:
                settled[at_ms, REGULAR] = 0.0001
    known.settled[mixed_plan.SPECIAL][PLAN.special_ms, SPECIAL] = mixed_plan.LONE_RATE
    known.settled[BOTH][PLAN.full_ms, SPECIAL] = mixed_plan.BOTH_RATE
    return known


def frame(known: Known, pair: str, timeframe: str, number: int = -1) -> Answer:
    """One contract's candles, as the current reader gives them."""
    life = known.lives[pair][number]
    rows = [
        [open_ms, *row]
        for open_ms, row in known.candles[pair, timeframe].items()
        if known.life_at(pair, timeframe, open_ms) == life
    ]
    lives = [[one.listed_ms, one.ended_ms, one.symbol] for one in known.lives[pair]]
    return {"rows": rows, "missing": [], "absent": [], "lives": lives}


def right(known: Known) -> Answer:
    """What the current reader answers at the end."""
    over = (ENDING, DROPPED)
    return {
        "pairs": {
            pair: {
                "timeframes": [] if pair == DROPPED else list(TIMEFRAMES),
                "ended": {ENDING: PLAN.ending_ms, DROPPED: PLAN.drop_ms}.get(pair),
            }
            for pair in PAIRS
        },
        "frames": {pair: {one: frame(known, pair, one) for one in TIMEFRAMES} for pair in PAIRS},
        "older": {one: frame(known, REUSED, one, 0) for one in TIMEFRAMES},
        "settled": {
            pair: {
                "rows": [
                    [at_ms, rate, kind]
                    for at_ms, kind, rate in known.settled_of(pair, PLAN.since_ms, NOW_MS)
                ],
                "missing": [],
                "settled_to": PLAN.full_ms + MINUTE_MS,
            }
            for pair in PAIRS
        },
        "marks": {
            pair: {"price": mixed_plan.AGAIN_PRICE, "time": PLAN.end_ms}
            for pair in PAIRS
            if pair not in over
        },
        "rates": {
            pair: {
                "rate": 0.0002,
                "settled": 0.0001,
                "next": PLAN.full_ms + HOUR_MS,
                "interval_h": 1.0 if pair == HOURLY else 8.0,
            }
            for pair in PAIRS
            if pair not in over
        },
        "lives": {
            pair: [[one.symbol, one.listed_ms, one.ended_ms] for one in known.lives[pair]]
            for pair in PAIRS
        },
        "strict": {pair: {"error": "GapError"} if pair == REUSED else {} for pair in PAIRS},
        "feeder": {f"{pair} {one}": {"rows": []} for pair in PAIRS for one in TIMEFRAMES},
    }


def test_what_is_right_passes() -> None:
    known = exchange()
    answer = right(known)
    assert new_reader(answer, known, PLAN, NOW_MS, final=True) == []
    assert new_reader(answer, known, PLAN, NOW_MS, final=False) == []
    assert old_reader(answer, known, PLAN, NOW_MS) == []
    assert as_alone(answer, answer, PLAN) == []


def other_price(answer: Answer) -> None:
    answer["frames"][STEADY]["1m"]["rows"][50][4] += 0.5


def joined(answer: Answer) -> None:
    one = answer["frames"][REUSED]["1m"]
    one["rows"] = answer["older"]["1m"]["rows"] + one["rows"]


def hole(answer: Answer) -> None:
    del answer["frames"][BOTH]["5m"]["rows"][10]


def told_hole(answer: Answer) -> None:
    one = answer["frames"][BOTH]["5m"]
    one["missing"] = [one["rows"].pop(10)[0]]


def short(answer: Answer) -> None:
    del answer["frames"][STEADY]["1m"]["rows"][:30]


def called_regular(answer: Answer) -> None:
    answer["settled"][mixed_plan.SPECIAL]["rows"][0][2] = REGULAR


def special_twice(answer: Answer) -> None:
    rows = answer["settled"][BOTH]["rows"]
    rows[0][1] = rows[1][1]


def without_special(answer: Answer) -> None:
    answer["settled"][BOTH]["rows"].pop()


def behind(answer: Answer) -> None:
    answer["settled"][STEADY]["settled_to"] = PLAN.full_ms


def refused(answer: Answer) -> None:
    answer["settled"][STEADY]["missing"] = [PLAN.special_ms]


def other_interval(answer: Answer) -> None:
    answer["rates"][HOURLY]["interval_h"] = 8.0


def one_life(answer: Answer) -> None:
    del answer["lives"][REUSED][0]


def goes_on(answer: Answer) -> None:
    answer["lives"][ENDING][0][2] = None


def unbroken(answer: Answer) -> None:
    answer["strict"][REUSED] = {}


def older_cut(answer: Answer) -> None:
    answer["older"]["1m"]["rows"].pop()


def still_live(answer: Answer) -> None:
    answer["pairs"][DROPPED]["ended"] = None


def broke(answer: Answer) -> None:
    answer["rates"] = {"error": "KeyError", "text": "'kinds'"}


@pytest.mark.parametrize(
    "planted",
    [
        *(other_price, joined, hole, told_hole, short, called_regular, special_twice),
        *(without_special, behind, refused, other_interval, one_life, goes_on, unbroken),
        *(older_cut, still_live, broke),
    ],
)
def test_what_a_new_reader_has_wrong_is_found(planted: Callable[[Answer], None]) -> None:
    known = exchange()
    answer = copy.deepcopy(right(known))
    planted(answer)
    assert new_reader(answer, known, PLAN, NOW_MS, final=True)


@pytest.mark.parametrize("planted", [other_price, joined, hole, called_regular, broke])
def test_some_of_it_at_each_look(planted: Callable[[Answer], None]) -> None:
    known = exchange()
    answer = copy.deepcopy(right(known))
    planted(answer)
    assert new_reader(answer, known, PLAN, NOW_MS, final=False)


@pytest.mark.parametrize("planted", [other_price, hole, told_hole, without_special, still_live])
def test_an_old_reader_answers_as_alone(planted: Callable[[Answer], None]) -> None:
    known = exchange()
    answer = copy.deepcopy(right(known))
    planted(answer)
    assert as_alone(answer, right(known), PLAN)
    # What it lacks alone, and has beside the new collector, is no fault.
    if planted is told_hole:
        assert as_alone(right(known), answer, PLAN) == []


@pytest.mark.parametrize("planted", [other_price, hole, broke])
def test_an_old_reader_may_not_be_wrong(planted: Callable[[Answer], None]) -> None:
    known = exchange()
    answer = copy.deepcopy(right(known))
    planted(answer)
    assert old_reader(answer, known, PLAN, NOW_MS)


def test_the_order_of_what_happens_holds_for_any_length() -> None:
    for minutes in range(24, 91):
        plan = Plan(minutes, 15.0, 30.0)
        assert problem(plan) == ""
        times = (
            *(plan.since_ms, plan.start_ms, plan.begin_ms, plan.special_ms, plan.reused_end_ms),
            *(plan.ending_ms, plan.again_ms, plan.full_ms, plan.drop_ms, plan.end_ms),
        )
        assert list(times) == sorted(set(times)), minutes
        assert plan.special_ms % HOUR_MS
    assert problem(Plan(12, 15.0, 30.0))
    assert problem(Plan(120, 15.0, 30.0))
    assert problem(Plan(60, 240.0, 30.0))
