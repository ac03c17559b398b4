"""The section of what the aggregator forwards: real bots, bursts, conflicts, troubles, a third bot."""

import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.proofs.commands import Done, run
from tests.proofs.section import Section, markdown

_LIMIT_S: Final = 3 * 3_600.0
_SCRIPTED: Final = ("--bots", "scripted")
_WHOLE: Final[dict[str, tuple[str, ...]]] = {
    "examples": (),
    "burst": (),
    "conflicts": (),
    "recovery": (),
    "health": (),
    "ledgers": (),
    "meta": (),
    "kills": ("--decisions", "1000", "--seed", "1"),
}
_QUICK: Final[dict[str, tuple[str, ...]]] = {
    "examples": _SCRIPTED,
    "burst": (*_SCRIPTED, "--pairs", "60", "--window-s", "3"),
    "conflicts": (*_SCRIPTED, "--window-s", "6"),
    "meta": (*_SCRIPTED, "--calm", "4", "--burst", "4", "--kills", "1"),
    "kills": (*_SCRIPTED, "--quick"),
}


class _Report(msgspec.Struct):
    title: str
    seconds: float
    figures: dict[str, object]
    findings: list[str]


def forwards(logs: Path, *, quick: bool) -> Section:
    """Run each proof with real bots, or a few of them with scripted ones."""
    section = Section(title="What the aggregator forwards, and to whom")
    for name, arguments in (_QUICK if quick else _WHOLE).items():
        done = run(
            ["-m", f"tests.freqtrade.{name}", *arguments, "--json"],
            _LIMIT_S,
            python=sys.executable,
            log=logs / f"forwards-{name}.log",
        )
        section.took(done)
        _add(section, name, done)
    section.body += [
        "",
        (
            "Bots are Freqtrade 2026.9 in dry-run on the simulated exchange; orders are counted by a proxy "
            "in front of each. What has to hold is in `tests/freqtrade/judge.py`, as functions of the "
            "ledger's decisions, these orders, and the bots' own trades."
        ),
    ]
    return section


def _add(section: Section, name: str, done: Done) -> None:
    try:
        report = msgspec.json.decode(done.output, type=_Report)
    except msgspec.DecodeError:
        section.failed(f"`{name}`", done)
        return
    section.failures += [f"{name}: {text}" for text in report.findings[:10]]
    if done.code != 0 and not report.findings:
        section.failed(f"`{name}`", done)
    rows = [["", ""], *([what.strip(), str(value)] for what, value in report.figures.items())]
    section.body += ["", f"### {report.title}", "", *markdown(rows)]
