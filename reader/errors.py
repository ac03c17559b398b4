"""The error tree.

* ReaderError                 everything this package raises on purpose
    * ArgumentError           an argument or the store's address is wrong (a ValueError as well)
    * UnknownPairError        no pair, or one that is not collected (`pair`)
    * UnknownTimeframeError   neither collected nor resampled (`timeframe`, `valid`)
    * StaleDataError          what is stored is older than allowed (`ages`), or nothing is collected
    * GapError                candles are absent, or another contract's (`lives`), and `strict=True` was
                              asked (`missing`)
    * StoreUnavailableError   the store cannot be read: not there, not ours, damaged, no permission
    * StoreAuthError          the store refused the credentials

All can be pickled, so they pass from a worker process to its parent.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pandas as pd

PURE = True

_NAMED: Final = 10


class ReaderError(Exception):
    """Base of every error that the reader raises on purpose. Its text is meant for people."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ArgumentError(ReaderError, ValueError):
    """An argument, or the address of the store, cannot be used. The text names what is expected."""


class UnknownPairError(ReaderError):
    """`pair` is not written as a pair, or is not collected.

    `close_matches` are collected pairs that look like it.
    """

    def __init__(self, message: str, pair: object, close_matches: Sequence[str] = ()) -> None:
        super().__init__(message, pair, close_matches)
        self.pair = pair
        self.close_matches = tuple(close_matches)


class UnknownTimeframeError(ReaderError):
    """`timeframe` can be neither read nor resampled; `valid` names those that can, ascending."""

    def __init__(self, message: str, timeframe: object, valid: Sequence[str]) -> None:
        super().__init__(message, timeframe, valid)
        self.timeframe = timeframe
        self.valid = tuple(valid)


class StaleDataError(ReaderError):
    """The newest stored value is older than allowed.

    `ages` gives the age of each pair concerned in seconds, infinite where nothing is stored yet; it is
    empty where all pairs were asked for, and there is none.
    """

    def __init__(self, message: str, ages: Mapping[str, float]) -> None:
        super().__init__(message, ages)
        self.ages = dict(ages)

    @property
    def pairs(self) -> tuple[str, ...]:
        """The pairs concerned, in the order in which they were asked for."""
        return tuple(self.ages)


class GapError(ReaderError):
    """Closed candles are absent in the range asked for, or are those of another contract.

    `gaps` gives the absent open times of each pair concerned; `pair` and `missing` are the first of
    them, the only one unless many pairs were asked for. `lives` gives, of each pair whose name is that of
    several contracts in the range, these contracts: as `attrs["lives"]` of the frame would.
    """

    def __init__(
        self,
        message: str,
        timeframe: str,
        gaps: Mapping[str, Sequence[pd.Timestamp]],
        lives: Mapping[str, Sequence[Sequence[int | str | None]]] | None = None,
    ) -> None:
        super().__init__(message, timeframe, gaps, lives)
        self.timeframe = timeframe
        self.gaps = {pair: list(missing) for pair, missing in gaps.items()}
        self.lives = {pair: [list(life) for life in each] for pair, each in (lives or {}).items()}

    @property
    def pair(self) -> str:
        """The first pair with a gap."""
        return next(iter(self.gaps))

    @property
    def missing(self) -> list[pd.Timestamp]:
        """The open times (UTC) that are absent of `pair`, ascending."""
        return self.gaps[self.pair]


class StoreUnavailableError(ReaderError):
    """The store cannot be read. The text names what was found and what to do.

    `silent`: it was waited for until a time-out, and asked again it may take as long.
    """

    def __init__(self, message: str, silent: bool = False) -> None:
        super().__init__(message, silent)
        self.silent = silent


class StoreAuthError(ReaderError):
    """The store refused the credentials."""


def nothing_live(*, collected: bool) -> StaleDataError:
    """The error for whoever asks for all pairs when there is no live one, whether some have ended or not.

    No pairs are no answer: so it looks, too, when a catalog is lost.
    """
    if collected:
        return StaleDataError("nothing is collected any more: every pair has ended", {})
    return StaleDataError(
        "nothing is collected yet: the catalog is empty. Does the collector run (marketfeed status), "
        "and is this the store that it writes to?",
        {},
    )


def listing(texts: Iterable[str]) -> str:
    """Join the first ten texts, and add how many more there are."""
    found = list(texts)
    more = len(found) - _NAMED
    return "; ".join(found[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
