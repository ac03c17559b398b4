"""What was measured, as tables for people or one JSON object for programs."""

from collections.abc import Mapping, Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Column(msgspec.Struct, frozen=True):
    """A number that each row of a section may have; its name carries the unit."""

    name: str
    digits: int = 1


class Row(msgspec.Struct, frozen=True):
    """One thing measured. `met` is None where there is no goal."""

    what: str
    values: Mapping[str, float]
    goal: str = ""
    met: bool | None = None


class Section(msgspec.Struct, frozen=True):
    """One table."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def show(console: Console, section: Section) -> None:
    """Print a section."""
    table = Table(title=section.title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for column in section.columns:
        table.add_column(column.name, justify="right")
    table.add_column("goal", no_wrap=True)
    table.add_column("met")
    for row in section.rows:
        numbers = [
            f"{row.values[column.name]:,.{column.digits}f}" if column.name in row.values else ""
            for column in section.columns
        ]
        table.add_row(Text(row.what), *numbers, Text(row.goal), _verdict(row.met))
    console.print(table)
    for note in section.notes:
        console.print(Text(f"  {note}"))
    console.print()


def _verdict(met: bool | None) -> Text:
    if met is None:
        return Text("")
    return Text("yes", style="green") if met else Text("NO", style="bold red")


def as_json(environment: Mapping[str, object], sections: Mapping[str, Section]) -> bytes:
    """All sections as one object."""
    tables = {
        name: {
            "title": section.title,
            "rows": [
                {"what": row.what, **row.values, "goal": row.goal or None, "met": row.met}
                for row in section.rows
            ],
            "notes": list(section.notes),
        }
        for name, section in sections.items()
    }
    body = msgspec.json.encode({"environment": environment, "sections": tables})
    return msgspec.json.format(body, indent=2) + b"\n"
