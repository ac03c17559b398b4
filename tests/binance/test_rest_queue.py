"""How long REST is stopped in all, over answers that stop it again and again."""

import asyncio
from collections.abc import Callable

import pytest

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest_queue import RestReport, Turns


class Passing(ExchangeClock):
    """A clock on which seconds pass at a word."""

    passed_s = 0.0

    def elapsed_s(self) -> float:
        return self.passed_s


def stopping(check: Callable[[Turns, Passing], None]) -> None:
    async def run() -> None:
        clock = Passing()
        check(Turns(Budget(1_000), clock), clock)

    asyncio.run(run())


def in_all(report: RestReport) -> tuple[float, float]:
    return report.stopped_s, report.stopped_in_all_s


def test_one_stop_lasts_as_long_as_it_says() -> None:
    def check(turns: Turns, clock: Passing) -> None:
        assert in_all(turns.report()) == (0.0, 0.0)
        turns.stop(60.0, 429, "too many")
        assert in_all(turns.report()) == (60.0, 60.0)
        clock.passed_s = 59.0
        assert in_all(turns.report()) == pytest.approx((1.0, 60.0))
        clock.passed_s = 60.0
        assert in_all(turns.report()) == (0.0, 0.0)

    stopping(check)


def test_stops_without_a_good_answer_between_them_are_one() -> None:
    def check(turns: Turns, clock: Passing) -> None:
        turns.stop(60.0, 429, "too many")
        clock.passed_s = 61.0
        turns.stop(60.0, 429, "too many")
        # The answer to what was under way.
        turns.answered_well()
        assert in_all(turns.report()) == (60.0, 121.0)
        clock.passed_s = 200.0
        turns.answered_well()
        turns.stop(60.0, 429, "too many")
        assert in_all(turns.report()) == (60.0, 60.0)

    stopping(check)


def test_a_stop_of_an_earlier_run_lasts_from_its_start_on() -> None:
    def check(turns: Turns, clock: Passing) -> None:
        turns.stop(7_200.0, 418, "banned")
        clock.passed_s = 1_000.0
        state = turns.budget.state(turns.now())
        later = Turns(Budget(1_000), clock)
        later.budget.restore(later.now(), state)
        assert in_all(later.report()) == pytest.approx((6_200.0, 6_200.0), abs=1.0)

    stopping(check)
