"""kill -9 at any moment: the coverage in the file is what its rows say. `KILLS=1000` kills more often."""

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("KILLS", "40"))
SEED = int(os.environ.get("SEED", "1"))


def test_coverage_is_what_the_rows_say_after_each_kill(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.journal.coverage_kills", str(KILLS), str(SEED), tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60.0 + 5.0 * KILLS,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    sys.stdout.write(done.stdout)
    assert report["fault"] == "", f"{report}\n{done.stderr[-4_000:]}"
    assert report["kills"] == KILLS
    # There was something to look at, and files that had to be recovered.
    assert report["series"] > KILLS / 2
    assert report["holes"] > KILLS / 2
    assert report["wal_left"] > KILLS / 4
