"""Two versions of the collector on one bucket: the new readers are right, the old ones as they were.

`python -m tests.upgrade.mixed_collectors` runs the released collector (c63af64) and the current one, and
that of 0.2.0 (as it stood before lives, halts and kinds of settlements) and the current one, each in both
orders of start, as real processes against one simulated exchange, shipping into one bucket of a real influxd.
In the exchange's hour (`--minutes`) happens what `mixed_plan.py` says: a lone special settlement, a symbol
that is used again at a hundred times the price, a contract that ends, a special settlement beside a regular
one, a pair that all settings drop (each collector is stopped and started again meanwhile). Exit 1 when
something is not as expected; a run in which the collectors were not there in time is none, and exit 1 too.

What is expected of the **new** readers, at each look and, of all that has closed, at the end:

- Each candle is the exchange's; no frame holds candles of two contracts of one symbol. What has been due for
  15 s is there or in `missing`; at the end nothing is missing, from two hours before until the end (of the
  dropped pair: until it was dropped).
- At the end `lives` are the exchange's, to the ms; the reused symbol's frames name the break, `strict` raises
  GapError there, and what is asked until the first contract's end is that contract's, whole.
- Settlements are the exchange's with their kinds, at the end each that is due; until ten minutes after it one
  may be called Regular that the older collector alone has written. `settled_to` lies behind the full
  settlement, and nothing is told as missing. Running rates have the right interval, or none.

What is expected of the **old** readers, in processes of their own:

- No error, but for a contract without its first candle, and a point that is read while it is written; no
  candle and no rate that the exchange does not have; of the pairs that just trade, each due candle is there,
  or told.
- At the end they answer as they do on the other bucket, to which a collector of their version has shipped
  alone meanwhile, from the same exchange: the same candles, settlements, catalog, settled rates, and what a
  feeder is given; of what was missing there may be more. What they cannot know is so in both: they join both
  contracts of the reused symbol, and their feeders may wait for a settlement by the grid.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, get_args

import msgspec

from tests.faults.lanes import Ended, Part, Progress, end_with_parent, python, run_parts
from tests.upgrade.mixed_outcome import Mixed
from tests.upgrade.mixed_plan import Plan, problem
from tests.upgrade.mixed_run import Order, Run, Version

# As the tests of this directory import each other.
sys.path[:0] = [
    str(Path(__file__).parent),
    *(str(Path(__file__).parents[1] / name) for name in ("faults", "influxdb", "aggregator")),
]

import earlier  # noqa: E402 - the directories first
import released  # noqa: E402

MODULE: Final = "tests.upgrade.mixed_collectors"
VERSIONS: Final = {"c63af64": released.COMMIT, "0.2.0": earlier.BEFORE_QUOTES}
ORDERS: Final[tuple[Order, ...]] = get_args(Order)
LEAD_S: Final = 90.0
ENDS_S: Final = 600.0
"""Wall seconds for starting and ending."""
_COLUMNS: Final = (
    "old version",
    "order",
    "minutes",
    "speed",
    "wall s",
    "looks",
    "candles",
    "settled",
)


class Old(NamedTuple):
    """An older version that is there."""

    interpreter: str
    environment: Mapping[str, str]


def obtain(name: str) -> Version:
    """The older version of that name. Raises RuntimeError where its commit cannot be obtained."""
    if name == "c63af64":
        found = released.obtain()
        return Old(str(found.python), released.own_environment())
    one = earlier.obtain(VERSIONS[name])
    if one is None:
        raise RuntimeError(f"this repository does not have {VERSIONS[name]}")
    return Old(sys.executable, one.environment)


def campaign(
    plan: Plan, chosen: Sequence[tuple[str, Order]], lanes: int, directory: Path
) -> tuple[list[Mixed], list[str]]:
    """Run all combinations; those that ended, and what the others died of."""
    found: list[Mixed] = []
    broken: list[str] = []
    progress = Progress(len(chosen))
    parts = []
    for name, order in chosen:
        home = directory / f"{name} {order}".replace(" ", "-")
        home.mkdir(parents=True)
        command = python(
            *("-m", MODULE, "--one", name, "--order", order, "--keep", home),
            *("--minutes", plan.minutes, "--speed", plan.speed, "--lead-s", plan.lead_s),
        )
        parts.append(Part(f"{name}, {order}", command, home / "run.log"))

    def on_ended(ended: Ended) -> None:
        try:
            one = msgspec.json.decode(ended.output, type=Mixed)
        except msgspec.DecodeError:
            broken.append(f"{ended.part.name} ended with {ended.code}:\n{ended.words}")
            progress.ended(f"{ended.part.name} broke")
            return
        found.append(one)
        progress.ended(f"{ended.part.name}: {len(one.complaints)} complaints")

    limit_s = plan.lead_s + plan.minutes * 60 / plan.speed + ENDS_S
    run_parts(parts, lanes, limit_s, on_ended)
    return sorted(found, key=lambda one: (one.version, one.order)), broken


def table(found: Sequence[Mixed]) -> list[str]:
    """The runs as lines."""
    rows = [
        (
            *(one.version, one.order, str(one.minutes), f"{one.speed:g}", f"{one.wall_s:.0f}"),
            *(f"{number:,}" for number in (one.looks, one.candles, one.settled)),
            str(len(one.complaints)),
        )
        for one in found
    ]
    lines = [(*_COLUMNS, "complaints"), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=int, default=60, help="of the exchange (60)")
    parser.add_argument("--speed", type=float, default=8.0, help="exchange seconds a second (8)")
    parser.add_argument("--lanes", type=int, default=2, help="combinations side by side (2)")
    parser.add_argument(
        "--lead-s", type=float, default=LEAD_S, help="wall seconds for the collectors' start (90)"
    )
    parser.add_argument("--versions", default=",".join(VERSIONS), help="only these, with commas")
    parser.add_argument("--orders", default=",".join(ORDERS), help="only these, with commas")
    parser.add_argument("--keep", type=Path, help="keep logs, journals and answers here")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--order", help=argparse.SUPPRESS)
    given = parser.parse_args()
    plan = Plan(given.minutes, given.speed, given.lead_s)
    if wrong := problem(plan):
        parser.error(wrong)
    # Whoever stops this is to leave no process behind.
    end_with_parent()
    if given.one is not None:
        one = Run(given.keep, plan, given.one, obtain(given.one), given.order).run()
        sys.stdout.write(msgspec.json.encode(one).decode())
        return 1 if one.complaints else 0
    versions, orders = given.versions.split(","), given.orders.split(",")
    for name, known in (*((one, VERSIONS) for one in versions), *((one, ORDERS) for one in orders)):
        if name not in known:
            parser.error(f"{name!r}: one of {', '.join(known)} is expected")
    for name in versions:
        # Once, before lanes would do it at the same time.
        obtain(name)
    chosen = [(name, order) for name in versions for order in orders]
    with _directory(given.keep) as directory:
        found, broken = campaign(plan, chosen, given.lanes, directory)
    if given.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write("\n".join(table(found)) + "\n")
    bad = [f"{one.version}, {one.order}: {text}" for one in found for text in one.complaints]
    for text in (*bad, *broken):
        sys.stderr.write(f"not good: {text}\n")
    return 1 if bad or broken else 0


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="marketfeed-mixed-") as name:
        yield Path(name)


if __name__ == "__main__":
    sys.exit(main())
