"""Runs the commands of a proof: each in a process group of its own, with a time limit and a log."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[2]
END_S: Final = 20.0
_TAIL: Final = 12
"""Lines of what a failed command printed that go into the page."""


class Done(msgspec.Struct, frozen=True):
    """A command that has ended. `code` is None when it was stopped at its time limit."""

    command: str
    code: int | None
    seconds: float
    output: str
    log: str

    @property
    def words(self) -> str:
        """The last lines of its log, without this machine's paths."""
        lines = [line for line in self.log.splitlines() if line.strip()][-_TAIL:]
        text = "\n".join(line[:300] for line in lines)
        return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")


def run(
    arguments: Sequence[str],
    limit_s: float,
    *,
    python: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    shown_python: str = "python",
) -> Done:
    """Run `python` with these arguments for at most `limit_s` wall seconds; its words go to `log`."""
    extra = dict(environment or {})
    # The operator's own settings must not reach a proof.
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("MARKETFEED_")}
    if "MARKETFEED_TEST_CACHE" in os.environ:
        kept["MARKETFEED_TEST_CACHE"] = os.environ["MARKETFEED_TEST_CACHE"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    output = log.with_suffix(".out")
    started_s = time.monotonic()
    with output.open("wb") as out, log.open("wb") as err:
        process = subprocess.Popen(
            [python, *arguments],
            cwd=ROOT,
            env={**kept, **extra, "PYTHONPATH": path, "COLUMNS": "140"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    # The page's reader runs it from the root, with files of a place of his own.
    shown = [f"{name}={value}" for name, value in extra.items() if not value.startswith("/")]
    parts = [part for part in arguments if not part.startswith(("/", "--junitxml"))]
    return Done(
        " ".join([*shown, shown_python, *(f"'{p}'" if " " in p else p for p in parts)]),
        code,
        time.monotonic() - started_s,
        output.read_text("utf-8", "replace"),
        log.read_text("utf-8", "replace") or output.read_text("utf-8", "replace"),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of its process group: children that outlived it, too."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            continue
        if sign is signal.SIGTERM:
            time.sleep(0.2)
