"""The reasons of an aggregator: each in the manual with its end, and no other."""

import re
from pathlib import Path
from string import Formatter

import pytest

from marketfeed.aggregator.reasons import Kind

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
SECTION = "### Reasons of the aggregator"
HEADS = ["reason", "what it means", "ends", "what to do"]
VALUES = {
    "N": "3", "SIDE": "long", "OTHER": "short", "BACK": "back", "STATE": "parked", "PAIR": "A/USDT:USDT",
    "F": "73", "VALUE": "confidence", "more": "A B",
}  # fmt: skip


def documented(page: str) -> list[list[str]]:
    """The rows of the manual's table."""
    section = page.partition(SECTION)[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    heads, *rest = ([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows)
    assert heads == HEADS
    return rest


def test_the_manual_lists_every_reason_and_its_end_and_no_other() -> None:
    rows = documented(OPERATING.read_text(encoding="utf-8"))
    assert [(reason, ends) for reason, _, ends, _ in rows] == [
        (f"`{kind.shown}`", kind.ends) for kind in Kind
    ]
    assert [row for row in rows if not all(row)] == []


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_its_text_is_what_the_manual_shows_and_names_its_end(kind: Kind) -> None:
    wanted = {name for _, name, _, _ in Formatter().parse(kind.words) if name}
    assert wanted <= VALUES.keys()
    reason = kind.reason(**{name: VALUES[name] for name in wanted})
    pattern = re.escape(kind.shown).replace("…", ".+")
    for name in wanted - {"more"}:
        pattern = re.sub(rf"\b{name}\b", ".+", pattern)
    assert re.fullmatch(pattern, reason.text)
    assert str(reason) == f"{reason.text} (until {kind.ends})"
    assert not re.search("[{}]", reason.text)
