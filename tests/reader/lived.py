"""What collectors tell of lives, put where readers find it: into a journal and a bucket."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from marketfeed import schema
from marketfeed.journal.journal import Journal
from marketfeed.records import Life, lives_text

Told = Mapping[str, Sequence[tuple[int, int | None]]]
"""Pair -> its lives, oldest first: when they were listed and when they ended (ms)."""


def symbol(pair: str) -> str:
    return pair.partition(":")[0].replace("/", "")


def tell(path: Path, told: Told) -> None:
    """Keep lives in a journal, in place of what it told of these pairs."""
    with Journal.open(path) as journal:
        journal.save_lives(made(told))


def made(told: Told) -> dict[str, list[Life]]:
    """Lives as a collector has them."""
    return {
        pair: [Life(pair, symbol(pair), *life, "onboardDate") for life in lives]
        for pair, lives in told.items()
    }


def lives_line(
    pair: str, lives: Sequence[tuple[int, int | None]], told_ms: int, collector: str = "host_1"
) -> str:
    """A point of `feed_coverage` as line protocol; pairs and collectors of tests need no escaping."""
    text = lives_text(made({pair: lives})[pair]).replace('"', r"\"")
    hour_ms = schema.floor_to(told_ms, schema.HOUR_MS)
    tags = f"collector={collector},pair={pair}"
    return f'{schema.FEED_COVERAGE},{tags} {schema.LIVES}="{text}" {hour_ms}'
