"""kill -9 at random moments between a signal's receipt and the bot's answer: nothing is sent twice or lost.

`KILLS=1000` kills more often than the 50 times of every run; `SEED` repeats a run's draws.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("KILLS", "50"))
SEED = int(os.environ.get("SEED", "1"))
LOST_AFTER_S = float(os.environ.get("LOST_AFTER_S", "2"))
"""After so long an unknown outcome alarms; 40 in service."""
RUNNER = Path(__file__).with_name("kill_aggregator.py")
START_S, EACH_S = 180.0, 5.0
"""Far more than it takes: to end a run that hangs."""


@pytest.mark.long(45)
def test_kills_send_nothing_twice_and_lose_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, RUNNER, str(KILLS), str(SEED), str(tmp_path), str(LOST_AFTER_S)],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S + EACH_S * KILLS,
    )
    assert done.returncode == 0, done.stderr
    sys.stdout.write(done.stdout)
    report = json.loads(done.stdout)
    log = (tmp_path / "log").read_text("utf-8")[-4_000:]
    assert report["fault"] == "", f"{report}\n{done.stderr}\n{log}"
    assert report["kills"] == KILLS
    # It was no walk in the park: orders on their way at the kill, and some of them executed.
    assert report["killed_while"]["sending"] > KILLS / 10
    assert report["ends"]["found"] > 0
    assert report["ends"]["accepted"] > 0
    assert report["trades"] > 0
    assert report["longest_unknown_s"] <= 60.0
