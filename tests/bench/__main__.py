"""`python -m tests.bench`: measurements beside named peers, as tables of ratios within one run.

Exit 0 when everything was measured, whatever the figures; 1 when something broke.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.bench import workload
from tests.bench.aggregate import aggregate
from tests.bench.child import BenchError
from tests.bench.close import close
from tests.bench.closes import closes
from tests.bench.full_journal import count
from tests.bench.influx_read import influx_read
from tests.bench.ingest import ingest, paced
from tests.bench.read import read
from tests.bench.report import Section, as_json, show
from tests.bench.ship import ship
from tests.bench.size import size
from tests.bench.soak import growth, soak

SECTIONS: Final = (
    "ingest",
    "paced",
    "close",
    "closes",
    "reader",
    "influx",
    "ship",
    "aggregate",
    "soak",
    "growth",
    "size",
)
ONLY_IF_NAMED: Final = ("growth", "size")
_LIBRARIES: Final = (
    "cryptofeed",
    "influxdb-client",
    "aiohttp",
    "websockets",
    "uvloop",
    "msgspec",
    "pandas",
    "numpy",
)


class _Progress:
    """One line on standard error that names what is being measured."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._live = sys.stderr.isatty()

    def report_progress(self, text: str) -> None:
        """Say what comes next."""
        line = f"[{time.monotonic() - self._started_s:5.0f} s] {text}"
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Make room for a table."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    named = f"{', '.join(SECTIONS)} (the last two only if named)"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=named)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="floods of each kind")
    parser.add_argument("--soak-seconds", type=int, default=60, metavar="N")
    parser.add_argument(
        "--pairs", type=int, default=workload.PAIRS, metavar="N", help="of the soak"
    )
    parser.add_argument("--growth-seconds", type=int, default=70, metavar="N", help="for each size")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[50, 164, 530],
        metavar="PAIRS",
        help="of the growth",
    )
    parser.add_argument("--closes-seconds", type=int, default=240, metavar="N")
    parser.add_argument(
        "--history-days", type=int, default=0, metavar="N", help="closes: while these are filled"
    )
    parser.add_argument(
        "--rows", type=count, nargs="+", default=[count("1M"), count("10M")], metavar="N",
        help="of the journals of size, such as 1M 10M 40M 70M (8 GB, and as much for a copy)",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, metavar="PATH", help="where size makes its journals")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}: {', '.join(SECTIONS)} are there")
    if arguments.repeat < 1 or min(arguments.soak_seconds, arguments.growth_seconds) < 15:
        parser.error("--repeat takes 1 or more, --…-seconds 15 or more")
    return arguments


def _environment() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def main() -> int:
    """Measure and print."""
    arguments = _arguments()
    wanted = arguments.sections or [name for name in SECTIONS if name not in ONLY_IF_NAMED]
    progress = _Progress()
    # Piped, it is as wide as the tables need.
    console = Console(width=None if sys.stdout.isatty() else 140)
    environment = _environment()
    if not arguments.json:
        facts = ", ".join(f"{name} {value}" for name, value in environment.items())
        console.print(Text(facts + "\n"))
    runs: dict[str, Callable[[], Section]] = {
        "ingest": lambda: ingest(progress.report_progress, arguments.repeat),
        "paced": lambda: paced(progress.report_progress),
        "close": lambda: close(progress.report_progress),
        "closes": lambda: closes(
            progress.report_progress, arguments.closes_seconds, arguments.history_days
        ),
        "reader": lambda: read(progress.report_progress),
        "influx": lambda: influx_read(progress.report_progress),
        "ship": lambda: ship(progress.report_progress),
        "aggregate": lambda: aggregate(progress.report_progress),
        "soak": lambda: soak(progress.report_progress, arguments.soak_seconds, arguments.pairs),
        "growth": lambda: growth(
            progress.report_progress, arguments.growth_seconds, arguments.sizes
        ),
        "size": lambda: size(progress.report_progress, arguments.rows, arguments.folder),
    }
    done: dict[str, Section] = {}
    try:
        for name in SECTIONS:
            if name not in wanted:
                continue
            done[name] = section = runs[name]()
            progress.clear()
            if not arguments.json:
                show(console, section)
    except (BenchError, TimeoutError) as error:
        progress.clear()
        sys.stderr.write(f"bench: {error}\n")
        return 1
    if arguments.json:
        sys.stdout.buffer.write(as_json(environment, done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
