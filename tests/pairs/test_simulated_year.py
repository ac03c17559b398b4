"""A year of listings, halts, ends, relistings and type changes: every series is right at every day's end.

Long: `python -m tests.pairs.simulated_year`, which `make proofs` runs as well.
"""

import pytest
from msgspec.structs import replace

from marketfeed.binance.symbols import ExchangeInfo
from marketfeed.pairs import lives
from marketfeed.pairs.known_lives import KnownLives
from tests.pairs import simulated_year
from tests.pairs.simulated_year import Year


@pytest.mark.parametrize("seed", range(3))
def test_every_series_is_right_at_every_day_s_end(seed: int) -> None:
    year = Year(seed, pairs=8)
    for day in year.run(120):
        assert year.wrong() == [], day
    # It was a time in which something has happened.
    assert any(len(lives) > 1 for lives in year.known.lives.values())


@pytest.mark.parametrize(
    "bug", ["row's own dates", "promise stays", "no question", "no end of its own"]
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
    else:
        monkeypatch.setattr(
            KnownLives, "_believed", lambda self, said, *more, silent: said._replace(ended_ms=1)
        )
    for seed in range(6):
        year = Year(seed, pairs=8)
        if any(year.wrong() for _ in year.run(120)):
            return
    raise AssertionError("not found")
