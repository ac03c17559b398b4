"""Rounds of two or three faults at once, in real time: `/health` is never green beside a missing candle.

`python -m tests.faults.fault_rounds --rounds 40 --round-s 300 --lanes 8` runs a simulated exchange and a
real collector for each round, and looks at both each second. Exit 1 when the collector said `well` while a
candle of the feed or healing was missing for more than 60 s, and when in the end a candle is missing or
otherwise than the exchange's, or the coverage in the file is not what its rows say.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.faults import proc_tools
from tests.faults.lanes import Ended, Part, Progress, end_with_parent, python, run_parts
from tests.faults.proc_disk import on_small_disk
from tests.faults.round_faults import KINDS, ROUND_S, draw_kinds, lead_s, plan
from tests.faults.round_run import (
    HEAL_S,
    TIMEFRAMES,
    Round,
    RoundOptions,
    run_round,
    symbols,
)

MODULE: Final = "tests.faults.fault_rounds"
DISK_BYTES: Final = 64 << 20
ENDS_S: Final = 300.0
"""Wall seconds for starting, comparing and stopping."""


class Campaign(msgspec.Struct, frozen=True):
    """What to run. `kinds` are those that are drawn from."""

    rounds: int
    round_s: float
    speed: float
    pairs: int
    seed: int
    lanes: int
    directory: Path
    kinds: Sequence[str] = KINDS


def campaign(asked: Campaign, progress: Progress) -> tuple[list[Round], list[str]]:
    """Run all rounds; those that ended, and what the others died of."""
    drawn = draw_kinds(asked.seed, asked.rounds, asked.kinds)
    parts = [_part(asked, number, kinds) for number, kinds in enumerate(drawn, 1)]
    found: list[Round] = []
    broken: list[str] = []

    def on_ended(ended: Ended) -> None:
        try:
            one = msgspec.json.decode(ended.output, type=Round)
        except msgspec.DecodeError:
            broken.append(f"{ended.part.name} ended with {ended.code}:\n{ended.words}")
            progress.ended(f"{ended.part.name} broke")
            return
        found.append(one)
        progress.ended(row(one))

    limit_s = lead_s(asked.kinds, asked.round_s) + asked.round_s + HEAL_S + ENDS_S
    run_parts(parts, asked.lanes, limit_s, on_ended)
    return sorted(found, key=lambda one: one.number), broken


def _part(asked: Campaign, number: int, kinds: Sequence[str]) -> Part:
    directory = asked.directory / f"round-{number:02}"
    # A disk of its own, so that it can be full. It is gone with the round's process.
    (directory / "disk").mkdir(parents=True)
    command = python(
        *("-m", MODULE, "--one", number, "--one-of", ",".join(kinds)),
        *("--round-s", asked.round_s, "--speed", asked.speed, "--pairs", asked.pairs),
        *("--seed", asked.seed, "--keep", directory),
    )
    if "full disk" in asked.kinds:
        command = [*on_small_disk(directory / "disk", DISK_BYTES), *command]
    return Part(f"round {number} ({', '.join(kinds)})", command, directory / "round.log")


def possible_kinds() -> list[str]:
    """The kinds that this machine lets one make; says which it does not."""
    found = list(KINDS)
    try:
        on_small_disk(Path(), 1)
    except BaseException as error:
        if not isinstance(error, pytest.skip.Exception | pytest.fail.Exception):
            raise
        _leave_out(found, "full disk", error)
    try:
        proc_tools.strace()
    except (proc_tools.ToolError, OSError) as error:
        _leave_out(found, "disk hangs", error)
    return found


def _leave_out(kinds: list[str], kind: str, why: BaseException) -> None:
    kinds.remove(kind)
    sys.stderr.write(f"left out: {kind}: {why}\n")


_HEAD: Final = (
    "round  well while missing  well/filling/not well/none s  whole after  candles  faults"
)


def row(one: Round) -> str:
    """One line of the table."""
    names = ("well", "filling", "not well", "no answer")
    seconds = "/".join(str(one.seconds.get(name, 0)) for name in names)
    whole = "never" if one.whole_after_s is None else f"{one.whole_after_s:.0f} s"
    rolled = f" ({one.rolled_over} rolled over)" if one.rolled_over else ""
    return (
        f"{one.number:5}  {one.well_while_missing:18}  {seconds:>29}  {whole:>11}  {one.candles:7}  "
        f"{'; '.join(one.faults)}{rolled}"
    )


def total(found: Sequence[Round]) -> str:
    """The campaign in one line."""
    looks = sum(sum(one.seconds.values()) for one in found)
    well = sum(one.well_while_missing for one in found)
    return (
        f"{len(found)} rounds, {looks:,} looks, one a second while it answers: {well} times "
        f"well while a candle was missing for more than 60 s "
        f"({sum(one.filling_while_missing for one in found)} filling; "
        f"{sum(one.unread for one in found)} could not read the journal); "
        f"{sum(one.candles for one in found):,} candles compared, "
        f"{sum(len(one.wrong) for one in found)} wrong; "
        f"{sum(len(one.coverage_mistakes) for one in found)} mistakes of coverage"
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--round-s", type=float, default=ROUND_S, help="wall seconds of a round")
    parser.add_argument("--speed", type=float, default=1.0, help="exchange seconds a second")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=1, help="rounds side by side")
    parser.add_argument("--kinds", help=f"only these, of: {', '.join(KINDS)}")
    parser.add_argument("--keep", type=Path, help="keep logs, and journals of bad rounds, here")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-of", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    # Whoever stops this is to leave no process behind.
    end_with_parent()
    if given.one is not None:
        return _run_one(given)
    kinds = possible_kinds()
    if given.kinds:
        wanted = given.kinds.split(",")
        for kind in wanted:
            if kind not in kinds:
                parser.error(f"--kinds: one of {', '.join(kinds)} is expected, not {kind!r}")
        kinds = wanted
    with _directory(given.keep) as directory:
        asked = Campaign(
            given.rounds,
            given.round_s,
            given.speed,
            given.pairs,
            given.seed,
            given.lanes,
            directory,
            kinds,
        )
        found, broken = campaign(asked, Progress(given.rounds))
    if given.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write("\n".join([_HEAD, *map(row, found), total(found)]) + "\n")
    bad = [(one, one.complaints()) for one in found if one.complaints()]
    for one, complaints in bad:
        for complaint in complaints:
            sys.stderr.write(f"not good: round {one.number}: {complaint}\n")
    for text in broken:
        sys.stderr.write(f"not good: {text}\n")
    return 1 if bad or broken else 0


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="marketfeed-rounds-") as name:
        yield Path(name)


def _run_one(given: argparse.Namespace) -> int:
    """One round of a campaign, in a process of its own."""
    kinds = given.one_of.split(",")
    lasts_s = given.round_s + lead_s(kinds, given.round_s)
    options = RoundOptions(given.one, given.keep, lasts_s, given.speed, given.pairs)
    planned = plan(
        kinds,
        f"{given.seed}-{given.one}",
        given.round_s,
        given.speed,
        symbols(given.pairs),
        TIMEFRAMES,
    )
    one = run_round(options, planned)
    if one.complaints():
        # The disk is gone with this process.
        shutil.copytree(given.keep / "disk", given.keep / "disk-kept")
    sys.stdout.write(msgspec.json.encode(one).decode())
    return 1 if one.complaints() else 0


if __name__ == "__main__":
    sys.exit(main())
