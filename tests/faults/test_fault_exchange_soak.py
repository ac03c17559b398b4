"""An hour of the exchange with faults all the time, the long run of `soak.py` in short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scoreboard import VARIABLE, Scoreboard, read_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.long(45)
def test_an_hour_of_faults(tmp_path: Path, scoreboard: Scoreboard) -> None:
    board = tmp_path / "row.jsonl"
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "tests.faults.soak", "--exchange-hours", "1", "--speed", "120"),
            *("--pairs", "20", "--seed", "11", "--every", "0.7", "--json", "--keep", str(tmp_path)),
            *("--disconnects", "5", "--kills", "1", "--outage-hours", "0.05"),
            *("--rollovers", "1", "--silent-empty"),
        ],
        cwd=ROOT,
        env={**os.environ, VARIABLE: str(board)},
        capture_output=True,
        text=True,
        timeout=600.0,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    verdict = outcome["verdict"]
    assert verdict["published"] == verdict["identical"] > 0
    assert outcome["kills"] == 1
    assert outcome["percent"] == 100.0
    assert outcome["rollovers"]["proven"] >= 1
    assert outcome["gaps"]["healed"] > 0
    assert outcome["audit"]["expected"] >= verdict["published"]
    assert sum(outcome["faults"].values()) >= 5
    for row in read_rows(board):
        scoreboard.add(row)
