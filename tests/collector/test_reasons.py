"""The reasons of a collector: each in the manual with its end, and all texts that are given are of these."""

import re
from pathlib import Path
from string import Formatter
from typing import Final, NamedTuple

import pytest

from marketfeed.collector.reasons import LATELY_S, Kind, Reason, named
from marketfeed.pairs.selection import NONE_COLLECTED

OPERATING: Final = Path(__file__).parents[2] / "docs" / "operating.md"
SECTION: Final = "### Reasons of the collector"
VALUES: Final = {"N": "3", "M": "7", "NAME": "feed-1", "STATE": "closed", "more": "A B"}


class _Documented(NamedTuple):
    reason: str
    means: str
    ends: str
    to_do: str


def documented(page: str) -> list[_Documented]:
    """The rows of the manual's table."""
    section = page.partition(SECTION)[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    heads, *rest = ([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows)
    assert heads == ["reason", "what it means", "ends", "what to do"]
    return [_Documented(*cells) for cells in rest]


def test_the_manual_lists_every_reason_and_its_end_and_no_other() -> None:
    rows = documented(OPERATING.read_text(encoding="utf-8"))
    assert [(row.reason, row.ends) for row in rows] == [
        (f"`{kind.shown}`", kind.ends) for kind in Kind
    ]
    assert [row.reason for row in rows if not row.means or not row.to_do] == []


def test_a_reason_that_the_manual_lacks_is_seen() -> None:
    page = OPERATING.read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if Kind.HOLES.shown in line)
    without = documented(page.replace(line + "\n", ""))
    assert len(without) == len(Kind) - 1
    assert f"`{Kind.HOLES.shown}`" not in [row.reason for row in without]


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_its_text_is_what_the_manual_shows_and_names_its_end(kind: Kind) -> None:
    wanted = {name for _, name, _, _ in Formatter().parse(kind.words) if name}
    assert wanted <= VALUES.keys()
    reason = kind.reason(**{name: VALUES[name] for name in wanted})
    pattern = re.escape(kind.shown).replace("…", ".+")
    for name in ("NAME", "STATE", "N", "M"):
        pattern = re.sub(rf"\b{name}\b", ".+", pattern)
    assert re.fullmatch(pattern, reason.text)
    assert str(reason) == f"{reason.text} (until {kind.ends})"
    assert not re.search("[{}]", reason.text)


def test_a_value_that_is_missing_is_no_text() -> None:
    with pytest.raises(KeyError, match="more"):
        Kind.NO_TIME.reason()


def test_what_is_over_at_once_ends_ten_minutes_after_the_last() -> None:
    assert LATELY_S == 600.0
    lately = [kind for kind in Kind if kind.ends == "10 min after the last"]
    assert lately == [Kind.READ_FAILED, Kind.LINES_REFUSED, Kind.FRAMES_REFUSED]
    assert "ago" in Kind.FRAMES_REFUSED.words


def test_reasons_are_compared_by_kind_and_text() -> None:
    assert Kind.NO_PAIRS.reason() == Reason(Kind.NO_PAIRS, NONE_COLLECTED)


@pytest.mark.parametrize(
    ("texts", "shown"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d"], "a, b, c, …")],
)
def test_the_first_are_named(texts: list[str], shown: str) -> None:
    assert named(iter(texts)) == shown
