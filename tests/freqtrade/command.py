"""What the commands of these proofs have in common: options, progress, a table of figures, an exit code."""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class Broken(Exception):  # noqa: N818 - a finding
    """Something is not as it should be."""


def require(good: object, text: str) -> None:
    """Raise Broken with this text if it is not good."""
    if not good:
        raise Broken(text)


def arguments(name: str, about: str | None, **more: Mapping[str, Any]) -> argparse.Namespace:
    """The options of a proof: those that all have, and `more` by name."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.freqtrade.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, how in more.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **how)
    parser.add_argument(
        "--bots", choices=("real", "scripted"), default="real",
        help="real: Freqtrade 2026.9 in dry-run, installed into a cache at first; scripted: no Freqtrade",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="repeats a run's draws")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument(
        "--keep", type=Path, help="a directory that does not exist yet, for ledger and logs"
    )
    return parser.parse_args()


class Progress:
    """Says on standard error what goes on, with the seconds since the start."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()

    def __call__(self, text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self.started_s:5.0f} s] {text}\n")
        sys.stderr.flush()


Figures = Sequence[tuple[str, object]]
Proof = Callable[[argparse.Namespace, Path, Progress], Awaitable[tuple[Figures, list[str]]]]


def run(proof: Proof, given: argparse.Namespace, title: str) -> int:
    """Run a proof, print its figures as a table, and what is not as it should be; 1 if anything is."""
    if given.keep is not None:
        given.keep.mkdir(parents=True)
    progress = Progress()
    random.seed(given.seed)
    with tempfile.TemporaryDirectory(prefix="freqtrade-") as temporary:
        home = (given.keep or Path(temporary)).absolute()
        try:
            figures, findings = asyncio.run(proof(given, home, progress))
        except (Broken, TimeoutError, AssertionError, ExceptionGroup) as error:
            figures, findings = (), list(_words(error))
    seconds = time.monotonic() - progress.started_s
    if given.json:
        found = {
            "title": title,
            "seconds": round(seconds),
            "figures": dict(figures),
            "findings": findings,
        }
        sys.stdout.write(json.dumps(found, default=str) + "\n")
    else:
        _show(title, [*figures, ("wall s", f"{seconds:.0f}")], findings)
    return 1 if findings else 0


def _words(error: Exception) -> Iterator[str]:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _words(each)
    else:
        yield str(error) or repr(error)


def _show(title: str, figures: Iterable[tuple[str, object]], findings: Sequence[str]) -> None:
    lines = [f"\n{title}", *(f"  {name:<58}{value}" for name, value in figures)]
    lines += [f"  NOT AS IT SHOULD BE: {text}" for text in findings[:20]]
    if len(findings) > 20:
        lines.append(f"  … and {len(findings) - 20} more")
    lines.append(f"  {'NOT GOOD: ' + str(len(findings)) + ' findings' if findings else 'good'}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
