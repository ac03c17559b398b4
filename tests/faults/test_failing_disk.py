"""Calls of SQLite's that fail with EIO, ENOMEM or ENOSPC at random positions, once and from then on.

No healthy file is set aside, and what was stored stays stored. A sector that is bad for good costs a journal
its place, and a ledger never. DISK_ERRORS says how many positions of each error are tried (`make proofs`:
25).
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from scoreboard import Row, Scoreboard

POSITIONS: Final = int(os.environ.get("DISK_ERRORS", "2"))
SEED: Final = int(os.environ.get("DISK_SEED", "22"))
HERE: Final = Path(__file__).parent
TIMEOUT_S: Final = 300.0 + 60.0 * POSITIONS


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of each case."""
    directory = tmp_path_factory.mktemp("disk")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no C compiler here")
    library = directory / "failing_disk.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_disk.c", "-ldl"],
        check=True,
    )
    work = directory / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, HERE / "failing_disk_run.py", work, str(POSITIONS), str(SEED)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_errors_set_no_healthy_file_aside_and_lose_nothing(
    lines: list[dict[str, Any]], scoreboard: Scoreboard
) -> None:
    tried = [line for line in lines if line["kind"] in ("journal", "ledger")]
    assert len(tried) == 2 * 3 * 2 * POSITIONS
    unseen: Counter[str] = Counter()
    for line in tried:
        assert line["failed"], line
        assert (line["aside"], line["lost"]) == ([], 0), line
        assert not line["ended"].startswith("BUG"), line
        # What is refused is told: by an error, a warning, or an end with a reason.
        is_shown = bool(line["met"] or line["log"] or line["ended"] or line["reads"])
        assert is_shown or not line["kept"], line
        unseen[line["call"]] += not is_shown
    # A checkpoint that fails is made again: what it was to write is in the -wal.
    assert unseen.total() < len(tried) // 3, unseen
    calls = Counter(line["call"] for line in tried)
    scoreboard.add(
        Row(
            fault=f"EIO, ENOMEM, ENOSPC, once and lasting: {len(tried)} cases ({dict(calls)})",
            lost=f"nothing, no file set aside; {unseen.total()} had no consequence",
        )
    )


def test_a_bad_sector_costs_a_journal_its_place(lines: list[dict[str, Any]]) -> None:
    (line,) = [line for line in lines if line["kind"] == "sector"]
    told = line["told"]
    assert len(line["aside"]) == 1, line
    assert told["set_aside"].endswith(line["aside"][0])
    assert (told["kept"], told["ended"]) == ([], "")
    assert any("set aside" in text for text in told["log"])
    # What comes after it is stored.
    assert line["there"] > 0


def test_a_bad_sector_never_costs_a_ledger_its_place(lines: list[dict[str, Any]]) -> None:
    tried = [line for line in lines if line["kind"] == "ledger sector"]
    assert tried
    for line in tried:
        assert line["aside"] == [], line
        told = line["told"]
        assert not told["ended"].startswith("BUG"), line
        if told["failed"]:
            assert told["met"] or "cannot be read from its disk" in told["ended"], line
