"""`marketfeed rejected-frames`: what it lists of a journal, and beside a collector that runs."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marketfeed.journal.batch import Batch
from marketfeed.journal.journal import Journal
from marketfeed.journal.rejected import REJECTED_FRAME_BYTES
from marketfeed.records import RejectedFrame
from tests.faults.proc_commands import (
    Collecting,
    exchange,
    get,
    run_command,
    run_marketfeed,
    write_config,
)
from tests.waiting import wait_until

T0 = 1_790_000_160_000
LONG = b'{"e":"new","x":"' + b"0123456789" * 1_000 + b'"}'
ODD = b"\x1b[31m\xff\xe9\x95\xbf\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """It stays open, as a collector's does: the command reads beside it."""
    with Journal.open(path) as journal:
        yield journal


def reject(journal: Journal, *frames: tuple[str, bytes]) -> None:
    batch = Batch()
    batch.extend(RejectedFrame(T0 + n, *frame) for n, frame in enumerate(frames))
    journal.write(batch)


def command(path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    settings = path.with_name("settings.yaml")
    settings.write_text(json.dumps({"journal": {"path": str(path)}}))
    return run_marketfeed("rejected-frames", "--config", settings, *arguments)


def test_it_is_good_when_there_is_none(path: Path, journal: Journal) -> None:
    shown = command(path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == "no frame is kept that could not be used\n"
    found = command(path, "--json")
    assert found.returncode == 0
    assert json.loads(found.stdout) == {"rejected_frames": []}


def test_a_frame_is_cut_in_the_table_and_whole_elsewhere(
    path: Path, journal: Journal, tmp_path: Path
) -> None:
    reject(journal, ("unknown_event: new", LONG), ("not_json: \x1b[2J", ODD))
    exported = tmp_path / "frames.jsonl"
    shown = command(path, "--export", exported)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "2 rejected frames" in shown.stdout
    assert "not_json 1, unknown_event 1" in shown.stdout
    assert shown.stdout.count("2026-09-21 14:16:00 UTC") == 2
    assert shown.stdout.count("0123456789") < 20
    assert "…" in shown.stdout
    # Who looks at it is not at the mercy of what was sent.
    assert "\x1b" not in shown.stdout
    assert r"\x1b[31m\xff长\n" in shown.stdout
    found = command(path, "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["rejected_frames"] == [
        {
            "received_ms": T0,
            "reason": "unknown_event: new",
            "frame": LONG[:REJECTED_FRAME_BYTES].decode(),
        },
        {"received_ms": T0 + 1, "reason": "not_json: \x1b[2J", "frame": "\x1b[31m\\xff长\n"},
    ]
    lines = exported.read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == json.loads(found.stdout)["rejected_frames"]


def test_the_newest_are_shown(path: Path, journal: Journal) -> None:
    reject(journal, *(("not_json: why", b"{number %d}" % n) for n in range(80)))
    shown = command(path)
    assert "80 rejected frames, the newest 50 shown" in shown.stdout
    numbers = [n for n in range(80) if f"{{number {n}}}" in shown.stdout]
    assert numbers == list(range(30, 80))
    assert shown.stdout.index("{number 30}") < shown.stdout.index("{number 79}")


def test_an_export_that_cannot_be_written_is_reported_in_a_line(
    path: Path, journal: Journal, tmp_path: Path
) -> None:
    target = tmp_path / "absent" / "frames.jsonl"
    for name in ("rejected-frames", "deadletter"):
        settings = tmp_path / "settings.yaml"
        settings.write_text(json.dumps({"journal": {"path": str(path)}}))
        done = run_marketfeed(name, "--config", settings, "--export", target)
        assert done.returncode == 1
        assert done.stderr == f"marketfeed: --export {target}: No such file or directory\n"


@pytest.mark.long(15)
def test_frames_of_a_running_collector(tmp_path: Path) -> None:
    with exchange(tmp_path, pairs=2) as venue:
        config = write_config(tmp_path, venue.ws_url, venue.rest_url)
        with Collecting(run_command(config), tmp_path / "run.log") as collector:
            wait_until(collector.is_delivering)
            none = run_marketfeed("rejected-frames", "--config", config)
            assert none.returncode == 0, none.stdout + none.stderr
            start_fault(
                venue.rest_url, {"fault": "spoil", "how": "truncate", "share": 0.3, "count": 20}
            )
            wait_until(lambda: collector.status()["rejects"].get("not_json", 0) >= 10)
            commits = collector.status()["journal"]["commits"]
            wait_until(lambda: collector.status()["journal"]["commits"] >= commits + 2)
            done = run_marketfeed("rejected-frames", "--config", config, "--json")
            assert done.returncode == 1, done.stderr
            shown = run_marketfeed("rejected-frames", "--config", config)
            assert shown.returncode == 1
            journal = collector.status()["journal"]
            assert journal["rejected_frames"] == journal["dead_letters"]
            metrics = get(collector.url + "/metrics").body.decode()
            assert "\nmarketfeed_rejected_frames " in metrics
            assert "\nmarketfeed_dead_letters " in metrics
            assert collector.stop() == 0, collector.log
    frames = json.loads(done.stdout)["rejected_frames"]
    assert len(frames) >= 10
    assert all(item["reason"].startswith("not_json: ") for item in frames)
    assert [item["received_ms"] for item in frames] == sorted(i["received_ms"] for i in frames)
    # Cut on the way: the beginning of what the exchange sends.
    assert any(item["frame"].startswith('{"stream":"') for item in frames)
    assert "rejected frames, the newest" in shown.stdout


def start_fault(rest_url: str, fault: dict[str, Any]) -> None:
    request = urllib.request.Request(  # noqa: S310 - loopback
        rest_url + "/simulator/faults", json.dumps(fault).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310 - loopback
        assert answer.status == 200
