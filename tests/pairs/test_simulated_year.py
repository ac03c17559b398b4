"""A year of listings, halts, ends, relistings, type changes and rhythms: all is right at every day's end.

Long: `python -m tests.pairs.simulated_year`, which `make proofs` runs as well.
"""

import random
from collections.abc import Iterator
from types import ModuleType

import pytest
from msgspec.structs import replace

from marketfeed import schema
from marketfeed.binance.symbols import ExchangeInfo
from marketfeed.history import awaited
from marketfeed.pairs import lives
from marketfeed.pairs.known_lives import KnownLives
from reader import settlements
from tests.pairs import simulated_rhythms, simulated_year
from tests.pairs.simulated_rhythms import Rhythms
from tests.pairs.simulated_year import START_MS, Year

FIRST, SECOND = object(), object()
"""Two contracts."""


@pytest.mark.parametrize("seed", range(2))
def test_every_series_is_right_at_every_day_s_end(seed: int) -> None:
    year = Year(seed, pairs=8)
    for day in year.run(120):
        assert year.wrong() == [], day
    # It was a time in which something has happened.
    assert any(len(lives) > 1 for lives in year.known.lives.values())
    assert min(year.rhythms.changed, year.rhythms.special) > 5


@pytest.mark.parametrize(
    "bug", ["row's own dates", "promise stays", "no question", "no end of its own", "kept for good"]
)
def test_what_is_wrong_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "row's own dates":
        corrected = KnownLives.corrected

        def uncorrected(self: KnownLives, info: ExchangeInfo, now_ms: int) -> ExchangeInfo:
            found = corrected(self, info, now_ms)
            return replace(found, instruments=info.instruments, beside=info.beside)

        monkeypatch.setattr(KnownLives, "corrected", uncorrected)
    elif bug == "promise stays":
        promised = simulated_year.promised

        def kept(known, promise, *more):  # type: ignore[no-untyped-def]
            return promised(known, promise._replace(listed_ms=0) if known else promise, *more)

        monkeypatch.setattr(simulated_year, "promised", kept)
    elif bug == "no question":
        after = lives.after

        def believing(known, row, traded=None, newest=None):  # type: ignore[no-untyped-def]
            return after(known, row, False, newest)

        monkeypatch.setattr("marketfeed.pairs.known_lives.after", believing)
    elif bug == "kept for good":
        # Coverage is not told of what retention has deleted.
        monkeypatch.setattr(simulated_year, "stored_before", lambda known, _: known)
    else:
        monkeypatch.setattr(
            KnownLives, "_believed", lambda self, said, *more, silent: said._replace(ended_ms=1)
        )
    for seed in range(6):
        year = Year(seed, pairs=8)
        if any(year.wrong() for _ in year.run(120)):
            return
    raise AssertionError("not found")


def counted_as_passed(announced, until_ms):  # type: ignore[no-untyped-def]
    """Whatever was announced once."""
    return sorted({schema.to_minute(one.next_ms) for one in announced if one.next_ms <= until_ms})


def completed_at_once(from_ms, answered, published_ms, came_ms, awaited_ms):  # type: ignore[no-untyped-def]
    """Whatever an answer lacks."""
    return awaited.completed(from_ms, answered, answered.end_ms, came_ms, ())


def from_the_last_one(row, *_):  # type: ignore[no-untyped-def]
    """From the last regular settlement that is stored, neighbour or not."""
    return (row.next_funding_time_ms - row.regular_ms) / schema.HOUR_MS


def wrong_settlements(seed: int, days: int) -> Iterator[list[str]]:
    """A time in which much happens to the settlements of a few contracts: what is wrong at each day's end."""
    rng = random.Random(seed)
    rhythms = Rhythms(random.Random(f"rhythms {seed}"), START_MS, every_h=60)
    contracts = {f"C{number}": (object(), START_MS - number, None) for number in range(4)}
    halted_ms = dict.fromkeys(contracts, 0)
    for hour in range(24 * days):
        now_ms = START_MS + hour * schema.HOUR_MS
        for pair in contracts:
            if rng.random() < 1 / 100:
                halted_ms[pair] = now_ms + rng.randrange(2 * schema.DAY_MS)

        def is_heard(pair: str, at_ms: int) -> bool:
            return at_ms >= halted_ms[pair]

        rhythms.pass_hour(now_ms, contracts, is_heard)
        if hour % 24 == 23:
            yield list(rhythms.wrong(now_ms + schema.HOUR_MS))


@pytest.mark.parametrize("seed", range(6))
def test_settlements_are_right_at_every_day_s_end(seed: int) -> None:
    for day, wrong in enumerate(wrong_settlements(seed, 60)):
        assert wrong == [], day


def test_a_contract_that_joins_in_a_halt_of_all_is_looked_for_once_it_is_heard() -> None:
    rhythms = Rhythms(random.Random(1), START_MS, every_h=10**9)
    contracts = {"C0": (object(), START_MS, None)}
    heard = True
    for hour in range(60):
        if hour == 30:
            contracts["C1"] = (object(), START_MS + 30 * schema.HOUR_MS, None)
        heard = not 26 <= hour < 34
        rhythms.pass_hour(START_MS + hour * schema.HOUR_MS, contracts, lambda *_: heard)  # noqa: B023
        if hour == 31:
            # Settled last more than an hour before, and not heard yet: nothing is to be asked.
            assert rhythms.look_ms is None
            assert rhythms.followed["C1"].live_to_ms is None
    assert list(rhythms.wrong(START_MS + 60 * schema.HOUR_MS)) == []
    assert rhythms.followed["C1"].stored


def test_a_contract_that_halts_before_its_first_settlement_has_no_interval() -> None:
    rhythms = Rhythms(random.Random(1), START_MS, every_h=10**9)
    listed_ms = START_MS + 30 * schema.HOUR_MS
    for hour in range(60):
        now_ms = START_MS + hour * schema.HOUR_MS
        contracts = {"C0": (FIRST, START_MS, None)}
        if hour >= 30:
            contracts["C1"] = (SECOND, listed_ms, None)
        rhythms.pass_hour(now_ms, contracts, lambda pair, _: pair == "C0" or hour == 30)  # noqa: B023
        assert list(rhythms.wrong(now_ms + schema.HOUR_MS)) == []
    one = rhythms.followed["C1"]
    assert one.said_ms is not None
    assert min(at_ms for at_ms, _ in one.stored) > one.said_ms


@pytest.mark.parametrize(
    ("where", "name", "planted"),
    [
        # What the exchange has taken back before it came is due.
        (settlements, "passed", counted_as_passed),
        # What is not published yet is complete.
        (simulated_rhythms, "completed", completed_at_once),
        # What may have been taken back while nobody listened is waited for.
        (simulated_rhythms, "is_certain", lambda *_: True),
        # A special settlement that is published after the regular one of its minute is not asked for.
        (simulated_rhythms, "EARLIER_MS", 0),
        # What another contract's answer has brought does not count as complete, at the next one either.
        (simulated_rhythms, "EARLIER_MS", schema.MINUTE_MS),
        (settlements, "interval_h", from_the_last_one),
        # Bots wait for none.
        (settlements, "lacking", lambda *_: []),
    ],
)
def test_what_is_wrong_with_settlements_is_found(
    where: ModuleType, name: str, planted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, planted)
    assert any(any(wrong_settlements(seed, 60)) for seed in range(6))
