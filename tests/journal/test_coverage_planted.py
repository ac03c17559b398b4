"""Mistakes that are put into coverage on purpose: random histories have to find each of them."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from marketfeed.grid import TimeRange
from marketfeed.journal import coverage
from marketfeed.journal.coverage import Covered, Hole
from marketfeed.schema import MINUTE_MS
from tests.proofs.coverage import live

HISTORIES = 500
"""More than each of these needs by far."""


def without_the_last_minute(known: Covered) -> Covered:
    """As if the exchange were asked for all but the newest candle, and nobody awaited that one."""
    if not known.holes or known.holes[-1].end_ms != known.end_ms:
        return known
    last = known.holes[-1]
    shorter = last._replace(end_ms=last.end_ms - MINUTE_MS)
    kept = (shorter,) if shorter.end_ms > shorter.start_ms else ()
    return msgspec.structs.replace(known, holes=(*known.holes[:-1], *kept))


def forgets_the_newest(real: Callable[..., Covered]) -> Callable[..., Covered]:
    return lambda *given: without_the_last_minute(real(*given))


def expects_too_little(real: Callable[..., Covered]) -> Callable[..., Covered]:
    def promised(known: Any, promise: Any, *others: Any) -> Covered:
        return real(known, promise._replace(now_ms=promise.now_ms - MINUTE_MS), *others)

    return promised


def takes_what_is_between_as_stored(real: Callable[..., Covered]) -> Callable[..., Covered]:
    def stored(known: Covered, opens: list[int], length_ms: int) -> Covered:
        return real(known, range(opens[0], opens[-1] + 1, length_ms), length_ms)

    return stored


def believes_the_first_answer(real: Callable[..., Covered]) -> Callable[..., Covered]:
    def answered_without(known: Covered, where: TimeRange, now_ms: int) -> Covered:
        found = real(known, where, now_ms)
        return msgspec.structs.replace(
            found, holes=tuple(hole for hole in found.holes if hole.empty_1_ms is None)
        )

    return answered_without


def keeps_what_was_deleted(real: Callable[..., Covered]) -> Callable[..., Covered]:
    return lambda known, before_ms: real(known, before_ms - MINUTE_MS)


def looks_at_too_little(real: Callable[..., Covered]) -> Callable[..., Covered]:
    def looked(known: Covered, down_to_ms: int, lacking: list[TimeRange]) -> Covered:
        return real(known, down_to_ms, lacking[1:])

    return looked


def trusts_a_hand(real: Callable[..., Covered]) -> Callable[..., Covered]:
    return lambda known: known


def names_a_hole_anew(real: Callable[..., Any]) -> Callable[..., Any]:
    def changed_gaps(*given: Any) -> Any:
        return [row for row in real(*given) if row[1] is not None]

    return changed_gaps


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("promised", forgets_the_newest),
        ("promised", expects_too_little),
        ("added_again", forgets_the_newest),
        ("stored", takes_what_is_between_as_stored),
        ("answered_without", believes_the_first_answer),
        ("stored_before", keeps_what_was_deleted),
        ("looked", looks_at_too_little),
        ("distrusted", trusts_a_hand),
        ("changed_gaps", names_a_hole_anew),
    ],
)
def test_a_planted_mistake_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, plant: Callable[[Callable[..., Any]], Any]
) -> None:
    monkeypatch.setattr(coverage, name, plant(getattr(coverage, name)))
    with pytest.raises((AssertionError, ValueError)):
        live_all()


def test_these_histories_are_good_without() -> None:
    assert live_all() > 10 * HISTORIES


def live_all() -> int:
    """How many events all histories have."""
    return sum(live(seed) for seed in range(HISTORIES))


def test_a_hole_that_is_nowhere_is_a_mistake() -> None:
    known = Covered(0, 0, 4 * MINUTE_MS, 0, (Hole(0, MINUTE_MS),))
    opens = [2 * MINUTE_MS]
    assert [text.partition(":")[0] for text in coverage.mistakes(known, opens, MINUTE_MS)] == [
        "not stored, and in no hole",
        "not stored, and in no hole",
    ]
    known = Covered(0, 0, MINUTE_MS, 0, (Hole(0, MINUTE_MS),))
    assert coverage.mistakes(known, [0], MINUTE_MS) != []
