"""A clock that is set, back or forward: it hides no conflict and no cool-down."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from office import Office
from voting import LONG, PAIR, RULES, SHORT, T0, WINDOW

from marketfeed.aggregator.passed import Passed

EARLY = msgspec.structs.replace(RULES, early_grace_ms=3_000)


async def outcomes(office: Office) -> list[tuple[str, str]]:
    return await office.query("SELECT side, outcome FROM decision ORDER BY window")


async def long_is_sent(path: Path) -> None:
    async with Office(path, EARLY, T0) as office:
        for feeder in LONG:
            await office.post(feeder)
        await office.wait(3_000)
        window = office.forwarded[0].window
        await office.step(window, "sending")
        await office.step(window, "accepted", trade_id=1)


@pytest.mark.parametrize("back_ms", [0, 30_000, 70_000, 90_000, 3_600_000])
@pytest.mark.parametrize("anew", ["restart", "failed commit"])
def test_a_clock_set_back_and_all_built_up_twice(tmp_path: Path, back_ms: int, anew: str) -> None:
    """The long window opened 15 s before the short one, and counts as now at either build."""
    path = tmp_path / "ledger.db"

    async def scenario() -> None:
        await long_is_sent(path)
        async with Office(path, EARLY, T0 + 10_000 - back_ms) as office:
            await office.wait(5_000)
            for feeder in SHORT[:3]:
                await office.post(feeder)
            await office.wait(59_000)
            if anew == "failed commit":
                await office.fail()
                assert (await office.post("79", pair="ETH/USDT:USDT")).status == 503
                await office.heal()
                await office.wait(2_000)
                assert await outcomes(office) == [("long", "forward"), ("short", "skip")]
                return
        async with Office(path, EARLY, T0 + 76_000 - back_ms) as office:
            await office.wait(0)
            assert await outcomes(office) == [("long", "forward"), ("short", "skip")]
            ((words,),) = await office.query("SELECT reasons FROM decision WHERE side = 'short'")
            assert ("a clock that has been set back" in words) == (back_ms > 70_000)

    asyncio.run(scenario())


def test_times_that_contradict_the_numbers_conflict() -> None:
    found = Passed(RULES)
    found.note(PAIR, "long", 1, T0 + 2 * WINDOW, T0 + 2 * WINDOW)
    assert found.against(PAIR, "short", 2, T0) is not None
    assert found.against(PAIR, "short", 2, T0 + 3 * WINDOW) is None
    found.note(PAIR, "short", 2, T0, T0)
    assert found.since(PAIR, "long", 1) is not None
    assert found.since(PAIR, "short", 2) is None


def test_a_trade_has_no_number_that_its_time_could_contradict() -> None:
    found = Passed(RULES)
    found.note_trade(PAIR, "long", T0 + 2 * WINDOW)
    assert found.against(PAIR, "short", 2, T0) is None
    assert found.against(PAIR, "short", 2, T0 + WINDOW + 1) is not None
