"""`python -m tests.proofs.coverage`: what is promised and missing, after very many random histories.

Each history is a seed for the model of `tests/journal/test_coverage.py`. Exit 1 with the first seed after
which something is neither stored nor missing; `--seed N` has that one alone once more, with its error.
"""

import argparse
import multiprocessing
import random
import sys
import time
from typing import Final

from tests.journal.test_coverage import Model, draw_event

HISTORIES: Final = 100_000
PROCESSES: Final = 2
EVENTS: Final = 60
"""At most so many in one history."""
AT_ONCE: Final = 250
_BAR: Final = 40


def live(seed: int) -> int:
    """One history; returns how many events it had. Raises AssertionError."""
    rng, model = random.Random(seed), Model()
    events = rng.randint(1, EVENTS)
    for _ in range(events):
        draw_event(rng.randint, model)
    return events


def _live_some(first: int) -> tuple[int, int | None]:
    """The histories of AT_ONCE seeds: how many events, and the seed of the first that went wrong."""
    events = 0
    for seed in range(first, first + AT_ONCE):
        try:
            events += live(seed)
        except Exception:
            return events, seed
    return events, None


def prove(histories: int, processes: int, first: int = 0) -> tuple[int, list[int]]:
    """So many histories, rounded up; returns how many events they had and seeds that went wrong."""
    starts = range(first, first + histories, AT_ONCE)
    events, wrong = 0, []
    started_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, (some, seed) in enumerate(pool.imap_unordered(_live_some, starts), 1):
            events += some
            wrong += [] if seed is None else [seed]
            _show(done, len(starts), time.monotonic() - started_s)
    return events, sorted(wrong)


def _show(done: int, all_of: int, passed_s: float) -> None:
    if not sys.stderr.isatty() and done % max(1, all_of // 20) and done < all_of:
        return
    bar = ("#" * (_BAR * done // all_of)).ljust(_BAR, ".")
    left_s = passed_s / done * (all_of - done)
    end = "\n" if done == all_of or not sys.stderr.isatty() else ""
    text = f"[{bar}] {done * AT_ONCE:,} of {all_of * AT_ONCE:,}, {left_s / 60:.1f} min left "
    sys.stderr.write(("\r" if sys.stderr.isatty() else "") + text + end)
    sys.stderr.flush()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.coverage", description=__doc__)
    parser.add_argument("--histories", type=int, default=HISTORIES)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="that history alone")
    given = parser.parse_args()
    if given.seed is not None:
        sys.stdout.write(f"{live(given.seed)} events, nothing is wrong\n")
        return 0
    started_s = time.monotonic()
    events, wrong = prove(given.histories, given.processes, given.first)
    sys.stdout.write(
        f"{given.histories:,} histories, {events:,} events, {time.monotonic() - started_s:.0f} s: "
        f"{f'wrong with seeds {wrong[:10]}' if wrong else 'nothing is neither stored nor missing'}\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
