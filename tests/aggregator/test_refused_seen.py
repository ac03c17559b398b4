"""Who was refused and why, as people find it: on the command line, in /health, in metrics and in the log."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import aiohttp
from bot import CountingBot
from running import DEADLINE_S, FLEET, LONG, Process, basic, config, rows, running, settings

sys.path.append(str(Path(__file__).parents[1] / "faults"))

from proc_commands import MARKETFEED, environment, run_marketfeed

from marketfeed.aggregator.ledger import Ledger
from marketfeed.aggregator.ledger_refused import KEPT
from marketfeed.aggregator.refused_posts import RefusedPost
from tests.waiting import until, wait_until

SECRET = "s3cret-of-nobody"  # noqa: S105 - invented
BODY = json.dumps({"pair": "BTC/USDT:USDT", "enter_tag": "long from 73"}).encode()
FLOOD = int(os.environ.get("FLOOD", "1000"))


def refused(path: Path) -> list[dict[str, Any]]:
    """What `signals --refused --json` prints."""
    shown = run_marketfeed("signals", "--refused", "--json", "--config", path / "config.yaml")
    assert shown.returncode == 0, shown.stderr
    found: list[dict[str, Any]] = json.loads(shown.stdout)["refused"]
    return found


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        with urlopen(Request(url, body, headers), timeout=30) as answer:  # noqa: S310 - loopback
            return int(answer.status)
    except HTTPError as error:
        return int(error.code)


def test_a_wrong_password_s_sender_is_found(tmp_path: Path) -> None:
    """A real process, real HTTP: the password is in no file and no line of the log."""
    process = Process(config(tmp_path, {"long": "http://127.0.0.1:9"}))
    try:
        door = f"{process.url}/api/v1/forceenter"
        for _ in range(3):
            assert post(door, BODY, basic((FLEET[0], SECRET))) == 401
        assert post(door, BODY, basic((SECRET, FLEET[0]))) == 401
        for tried in (("admin", SECRET), (SECRET, ""), (SECRET, "x"), ("Flleet", SECRET)):
            assert post(door, BODY, basic(tried)) == 401
        assert post(door, BODY, {"Authorization": f"Bearer {SECRET}"}) == 401
        assert post(door, BODY, basic(FLEET)) == 422
        assert post(door, b" " * 20_000, basic(FLEET)) == 413
        elsewhere = f"{process.url}/{SECRET}/token/login?password={SECRET}"
        assert post(elsewhere, BODY, basic(FLEET)) == 405
        assert post(door, BODY[:-1], basic(FLEET)) == 422
        assert post(door, b'{"pair": 5}', basic(FLEET)) == 422
    finally:
        assert process.stop() == 0
    found = {(row["status"], row["reason"]): row for row in refused(tmp_path)}
    assert len(found) == 9
    wrong = found[401, "wrong_password"]
    assert (wrong["account"], wrong["identity"], wrong["times"]) == ("fleet", "claimed", 3)
    assert (wrong["address"], wrong["sentence"]) == ("127.0.0.1", "wrong password")
    assert wrong["first_ms"] <= wrong["last_ms"]
    assert wrong["digest"] is None
    assert found[401, "swapped"]["account"] == ""
    # A token may stand in the name's place.
    unknown = {row["account"] for row in refused(tmp_path) if row["reason"] == "unknown_account"}
    beginning = f"{SECRET[:2]}… ({len(SECRET)} characters)"
    assert unknown == {"… (5 characters)", "", beginning, "Flleet"}
    assert found[401, "no_password"]["account"] == ""
    lacking = found[422, "missing_confidence"]
    assert (lacking["account"], lacking["identity"], lacking["feeder"]) == ("fleet", "shown", "73")
    assert lacking["digest"] == hashlib.sha256(BODY).hexdigest()
    assert lacking["body_bytes"] == len(BODY)
    assert found[413, "too_large"]["identity"] == "shown"
    other = found[405, "no_such_address"]
    assert other["request"] == "POST (another path)"
    assert "JWT" in other["sentence"]
    assert found[422, "not_json"]["sentence"] == "JSON decode error: Input data was truncated"
    assert found[422, "bad_pair"]["sentence"].startswith("pair: Input should be a valid string; ")
    table = run_marketfeed("signals", "--refused", "--config", tmp_path / "config.yaml").stdout
    assert "account fleet at 127.0.0.1" in table
    assert "wrong password (POST /api/v1/forceenter; first " in table
    flow = run_marketfeed("signals", "--config", tmp_path / "config.yaml").stdout
    assert "account fleet at 127.0.0.1: 401: wrong password (3 times)" in flow
    lines = [line for line in process.lines if "post refused" in line and "status=401" in line]
    assert sum("account='fleet'" in line for line in lines) == 1
    # Nothing that may hold a secret is kept.
    for file in tmp_path.glob("ledger.db*"):
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in "".join(process.lines) + table + flow


def test_who_follows_sees_a_refused_post_come(tmp_path: Path) -> None:
    log = tmp_path / "followed"
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        file = config(tmp_path, {"long": "http://127.0.0.1:9"}, fresh=True)
        refused_post = wrong_password(1_790_000_000_000)
        ledger.note_refused([refused_post])
        for options, words in (
            (("--refused", "--follow", "--json"), '"sentence":"wrong password"'),
            (("--follow",), "account fleet at 10.0.0.7: 401: wrong password"),
        ):
            with (
                log.open("w") as out,
                subprocess.Popen(
                    [*MARKETFEED, "signals", *options, "--config", str(file)],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment(),
                    preexec_fn=_heed_interrupts,  # noqa: PLW1509 - it sets a signal's handler alone
                ) as follower,
            ):
                try:
                    wait_until(lambda w=words: w in log.read_text())
                    ledger.note_refused([refused_post])
                    wait_until(lambda w=words: log.read_text().count(w) == 2)
                    follower.send_signal(signal.SIGINT)
                    assert follower.wait(DEADLINE_S) == 0
                finally:
                    follower.kill()


def _heed_interrupts() -> None:
    """A shell in the background has its children ignore Ctrl-C: here they take it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wrong_password(at_ms: int) -> RefusedPost:
    return RefusedPost(
        account="fleet",
        identity="claimed",
        address="10.0.0.7",
        feeder="",
        request="POST /api/v1/forceenter",
        status=401,
        reason="wrong_password",
        sentence="wrong password",
        digest=b"",
        body_bytes=None,
        first_ms=at_ms,
        last_ms=at_ms,
    )


def test_one_sender_s_mistakes_are_a_warning_of_that_sender(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            CountingBot() as bot,
            running(settings(tmp_path, {"long": bot.url}, window_s=600)) as aggregator,
        ):
            for number in range(20):
                assert (await aggregator.post("73", pair=f"P{number}/USDT:USDT"))[0] == 422
            assert (await aggregator.get("version", ("root", "guess")))[0] == 401
            # A browser, or a monitor that knows no password.
            assert (await aggregator.get("version", None))[0] == 401
            assert (await aggregator.get("other", None))[0] == 404
            status, health = await aggregator.status("health")
            assert (status, health["healthy"], health["reasons"]) == (200, True, [])
            often, fleet, root = health["warnings"]
            assert often.endswith(
                "often lack a confidence, the last from account fleet at 127.0.0.1"
            )
            assert fleet.startswith("account fleet at 127.0.0.1: 20 requests refused since ")
            assert "422 of feeder 73: no confidence: expected the field confidence" in fleet
            assert root.startswith("127.0.0.1 as '… (4 characters)': a request was refused at ")
            _, report = await aggregator.status()
            assert report["warnings"] == health["warnings"]
            assert report["refused_by_account"] == {"fleet": {"422": 20}, "?": {"401": 1}}
            async with aggregator.session.get(aggregator.aggregator.status_url + "/metrics") as got:
                text = await got.text()
            total = "marketfeed_aggregator_refused_posts_total"
            assert f'{total}{{account="fleet",status="422"}} 20.0' in text
            assert f'{total}{{account="?",status="401"}} 1.0' in text
            assert "root" not in text
            # As a client that speaks TLS begins.
            host, port = aggregator.aggregator.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50)
            await until(
                lambda: rows(tmp_path, "SELECT 1 FROM refused_post WHERE reason = 'malformed'"),
                "no HTTP",
            )
            writer.close()
            found = rows(tmp_path, "SELECT address, sentence FROM refused_post WHERE status = 400")
            assert found[0][0] == "127.0.0.1"
            assert "https://" in found[0][1]

    asyncio.run(scenario())


def test_a_flood_of_bad_posts_is_bounded_beside_good_ones(tmp_path: Path) -> None:
    """FLOOD=10000 sends more."""

    def bad(number: int) -> tuple[bytes, dict[str, str]]:
        if number % 4 == 0:
            return BODY, basic((f"name{number}", SECRET))
        if number % 4 == 1:
            return BODY, basic((FLEET[0], f"{SECRET}{number}"))
        tag = f"long from other{number} conf=0.9"
        body = json.dumps({"pair": "BTC/USDT:USDT", "enter_tag": tag}).encode()
        return body if number % 4 == 2 else b"{" * (1 + number % 50), basic(FLEET)

    async def send(session: aiohttp.ClientSession, url: str, numbers: range) -> None:
        for number in numbers:
            body, headers = bad(number)
            async with session.post(url, data=body, headers=headers) as answer:
                assert answer.status in (401, 422, 429)

    waits_s: list[float] = []

    async def scenario(url: str) -> int:
        good = 0
        async with aiohttp.ClientSession() as session:
            # So that the address is known as the account's before the guesses come.
            await send_good(session, url, good)
            lanes = 8
            flood = asyncio.gather(
                *(send(session, url, range(lane, FLOOD, lanes)) for lane in range(lanes))
            )
            while not flood.done():
                good += 1
                await send_good(session, url, good)
            await flood
        return good + 1

    async def send_good(session: aiohttp.ClientSession, url: str, number: int) -> None:
        tag = f"long from {LONG[number % 5]} conf=0.9"
        body = json.dumps({"pair": f"P{number}/USDT:USDT", "enter_tag": tag}).encode()
        started_s = time.monotonic()
        async with session.post(url, data=body, headers=basic(FLEET)) as answer:
            assert answer.status == 200, await answer.text()
        waits_s.append(time.monotonic() - started_s)

    process = Process(config(tmp_path, {"long": "http://127.0.0.1:9"}, window_s=600))
    try:
        good = asyncio.run(scenario(f"{process.url}/api/v1/forceenter"))
    finally:
        assert process.stop() == 0
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT pair) FROM signal") == [(good, good)]
    kept = refused(tmp_path)
    assert len(kept) < 100 < KEPT
    assert sum("post refused" in line for line in process.lines) < 100
    size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    ((used,),) = rows(tmp_path, size)
    half_s, most_s = sorted(waits_s)[good // 2], sorted(waits_s)[good * 99 // 100]
    sys.stdout.write(
        f"{FLOOD} bad, {good} good answered in {half_s * 1e3:.0f} ms (p99 {most_s * 1e3:.0f} ms): "
        f"{len(kept)} rows, {used} bytes\n"
    )
