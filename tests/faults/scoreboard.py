"""The scoreboard of faults: one row for each fault that a test has made, kept as JSON lines.

Rows go to the file that `MARKETFEED_SCOREBOARD` names, appended, or else to a fresh one in pytest's cache.
Tests that run side by side, each in a process of its own, append to one file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

VARIABLE: Final = "MARKETFEED_SCOREBOARD"
PATH: Final = pytest.StashKey[Path]()
"""Where the rows of this run of pytest go."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one fault.

    `lost` is what of the stored data is missing or wrong afterwards, and whether that was reported.
    `noticed_after_s` runs from the fault to its showing in the report, `whole_after_s` from the fault
    until all is well again (None: never, or there was nothing to notice or mend); both are exchange
    seconds. `others_disturbed` is what it did to data or connections that it was not aimed at.
    """

    fault: str
    lost: str
    noticed_after_s: float | None = None
    whole_after_s: float | None = None
    others_disturbed: str = "no"


class Scoreboard:
    """Appends each row to `path` as one line of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: Row) -> None:
        """Write one row."""
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file, in their order; none where there is no file."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Row) for line in path.read_bytes().splitlines()]


_HEADS: Final = ("fault", "lost", "noticed after", "whole after", "others disturbed")


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table of `rows`: columns as wide as their widest cell."""
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(_HEADS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.fault,
        row.lost,
        _seconds(row.noticed_after_s),
        _seconds(row.whole_after_s),
        row.others_disturbed,
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
