"""Means of confidences against exact fractions: compared before rounding, rounded once, half up."""

import random
from fractions import Fraction

import pytest
from voting import LONG, PAIR, RULES, T0, WINDOW, hundredths, mean_of

from marketfeed.aggregator.ballots import Decision, Vote
from marketfeed.aggregator.mean import Mean, confidence_text
from marketfeed.aggregator.signals import Signal
from marketfeed.aggregator.votes import Votes

SETS = 10_000


def any_confidence(rng: random.Random) -> float:
    places = rng.choice((0, 1, 2, 2, 2, 3, 4, 7, 17))
    return rng.choice(
        (
            round(rng.random(), places),
            # Around halves of a hundredth, and around the least that is enough.
            round(rng.randrange(100) / 100 + 0.005 + rng.choice((-1, 0, 1)) * 10**-places, 9),
            round(0.7 + rng.choice((-1, 0, 1)) * 10**-places, 9),
        )
    )


def test_random_sets_against_exact_fractions() -> None:
    rng = random.Random(20)
    halves = edges = 0
    for _ in range(SETS):
        found = [min(abs(any_confidence(rng)), 1.0) for _ in range(rng.randrange(1, 8))]
        least = rng.choice((0.7, 0.65, 0.333, 0.0, 1.0, round(rng.random(), 3)))
        mean, exactly = Mean.of(found), mean_of(found)
        assert mean.text() == hundredths(exactly), found
        assert mean.is_below(least) == (exactly < Fraction(repr(least))), (found, least)
        assert mean.nearest() == float(exactly), found
        assert Mean.of(reversed(found)) == mean
        halves += (200 * exactly).denominator == 1 and (100 * exactly).denominator == 2
        edges += exactly == Fraction(repr(least))
        if mean.is_below(least):
            assert Fraction(mean.text_below(least)) < Fraction(repr(least)), (found, least)
    # What goes wrong in binary was among them.
    assert halves > 100
    assert edges > 20


@pytest.mark.parametrize("confidence", [5e-324, 1e-99, 0.1 + 0.2, 1.0, 0.0])
def test_what_is_hardly_a_confidence_is_exact_too(confidence: float) -> None:
    found = [confidence, 1.0, 0.3]
    assert Mean.of(found).nearest() == float(mean_of(found))
    assert Mean.of(found).text() == hundredths(mean_of(found))


def decided(*confidences: float) -> Decision:
    votes = Votes(RULES)
    for number, (feeder, confidence) in enumerate(zip(LONG, confidences, strict=False), 1):
        signal = Signal(PAIR, "long", feeder, feeder, confidence)
        votes.add(Vote(number, T0, signal, signal.digest()))
    (decision,) = votes.due(T0 + WINDOW)
    return decision


def test_it_is_rounded_once() -> None:
    tag = "long ensemble 3/5 conf={} from=73"
    assert decided(0.8049996, 0.8049996, 0.8049996).tag == tag.format("0.80")
    assert decided(0.805, 0.805, 0.805).tag == tag.format("0.81")
    # 0.815 in binary is a little less.
    assert decided(0.815, 0.815, 0.815).tag == tag.format("0.82")
    assert decided(0.85, 0.72, 0.88).reasons == ("3 of 5 votes, confidence 0.8167",)


def test_it_is_compared_before_it_is_rounded() -> None:
    below = decided(0.6999996, 0.6999996, 0.6999996)
    assert (below.outcome, below.reasons) == ("skip", ("confidence 0.6999996, 0.7 needed",))
    assert decided(0.7, 0.7, 0.7).outcome == "forward"
    assert decided(0.6999999, 0.7, 0.7000001).outcome == "forward"


def test_a_confidence_alone_is_shown_half_up() -> None:
    assert [confidence_text(it) for it in (0.815, 0.8049996, 1.0)] == ["0.82", "0.80", "1.00"]
