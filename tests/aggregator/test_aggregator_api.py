"""The API: contract, bodies and statuses of a Freqtrade server, and what hostile callers meet."""

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from bot import CountingBot
from running import FLEET, PAIR, Running, basic, quick_hash, rows, running, settings

from marketfeed import __version__
from marketfeed.aggregator.api import TIMEOUT_S
from marketfeed.aggregator.auth import FAILURES, Caller, Doorkeeper, Limiter, hash_password
from marketfeed.aggregator.inbox import MAX_KEPT_BODY
from marketfeed.settings.aggregator import Account, AggregatorSettings
from tests.waiting import until


@contextlib.asynccontextmanager
async def door(path: Path, **changes: Any) -> AsyncIterator[Running]:
    """An aggregator whose windows do not close while it is asked."""
    async with (
        CountingBot() as bot,
        running(settings(path, {"long": bot.url}, **{"window_s": 600} | changes)) as aggregator,
    ):
        yield aggregator


def test_what_a_freqtrade_client_expects(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            assert await aggregator.get("ping", None) == (200, {"status": "pong"})
            assert await aggregator.get("version") == (200, {"version": __version__})
            assert await aggregator.get("status") == (200, [])
            assert (await aggregator.get("count"))[1]["current"] == 0
            assert (await aggregator.get("show_config"))[1]["state"] == "running"
            assert (await aggregator.get("whitelist"))[1]["length"] == 0
            status, health = await aggregator.get("health")
            assert (status, health["healthy"]) == (200, True)
            assert health["last_process_ts"] >= health["bot_start_ts"]
            for name in ("version", "health", "show_config", "status", "count", "whitelist"):
                assert await aggregator.get(name, None) == (401, {"detail": "Unauthorized"})
            assert await aggregator.get("trades") == (404, {"detail": "Not Found"})
            assert await aggregator.send({}, path="forceexit") == (
                405,
                {"detail": "Method Not Allowed"},
            )
            assert await aggregator.get("forceenter") == (405, {"detail": "Method Not Allowed"})

    asyncio.run(scenario())


def test_a_signal_is_answered_at_once_with_a_status(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            status, answer = await aggregator.post("75b", 0.89)
            assert status == 200
            assert answer["status"].startswith(
                "signal of feeder 75b for BTC/USDT:USDT long counted, conf=0.89: 1/5 votes, decided in "
            )
            status, answer = await aggregator.post("75c", 0.7, path="forcebuy")
            assert "1/5 votes" in answer["status"]

    asyncio.run(scenario())


def test_sentences(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            status, answer = await aggregator.post("73")
            assert status == 422
            assert answer == {
                "detail": [
                    {
                        "type": "missing",
                        "loc": ["body", "confidence"],
                        "msg": (
                            "no confidence: expected the field confidence, or a tag that says "
                            "conf=<0 to 1>"
                        ),
                        "input": None,
                    }
                ]
            }
            status, answer = await aggregator.post("120", 0.9)
            assert (status, answer["detail"][0]["msg"]) == (422, "feeder 120 votes short only")
            status, answer = await aggregator.post("73", 0.9, side="buy")
            assert (status, answer["detail"][0]["type"]) == (422, "enum")
            status, answer = await aggregator.send(b'{"pair": NaN}')
            assert (status, answer["detail"][0]["type"]) == (422, "json_invalid")
            status, answer = await aggregator.send(b"[" * 16_000)
            assert (status, answer["detail"][0]["type"]) == (422, "json_invalid")
            assert rows(tmp_path, "SELECT count(*) FROM signal") == [(0,)]

    asyncio.run(scenario())


def test_a_stated_default_is_counted_and_alarms_when_frequent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path, missing_confidence="0.75") as aggregator:
            for number in range(10):
                assert (await aggregator.status("health"))[0] == 200
                status, _ = await aggregator.post("73", pair=f"P{number}/USDT:USDT")
                assert status == 200
            status, answer = await aggregator.status("health")
            # One feeder's mistake is that feeder's: the service is well.
            assert (status, answer["reasons"]) == (200, [])
            assert answer["warnings"] == [
                "signals of feeder 73 often lack a confidence, the last from account fleet at 127.0.0.1"
            ]
            assert rows(tmp_path, "SELECT DISTINCT confidence, defaulted FROM signal") == [
                (0.75, "confidence")
            ]
            async with aggregator.session.get(aggregator.aggregator.status_url + "/metrics") as got:
                text = await got.text()
            wanted = 'marketfeed_aggregator_missing_total{feeder="73",value="confidence"} 10.0'
            assert wanted in text

    asyncio.run(scenario())


def test_a_text_strength_is_counted_and_the_body_kept_as_it_came(tmp_path: Path) -> None:
    body = (
        b'{"pair":"BTC/USDT:USDT","side":"long","feeder_id":73,"confidence":0.85,"entry_price":95000,'
        b'"signal_strength":"high"}'
    )
    long_body = body.replace(b'"high"', b'"high",' + b" " * MAX_KEPT_BODY + b'"leverage":2')

    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            status, answer = await aggregator.send(body)
            assert (status, "1/5 votes" in answer["status"]) == (200, True)
            assert (await aggregator.send(long_body))[0] == 200
            assert (await aggregator.send(body.replace(b'"high"', b'"0.8"')))[0] == 200
            status, answer = await aggregator.send(body.replace(b'"high"', b"true"))
            assert (status, answer["detail"][0]["loc"]) == (422, ["body", "signal_strength"])
            stored = rows(
                tmp_path, "SELECT body, strength, typeof(strength) FROM vote ORDER BY number"
            )
            assert stored == [
                (body, None, "null"),
                (hashlib.sha256(long_body).digest(), None, "null"),
                (body.replace(b'"high"', b'"0.8"'), 0.8, "real"),
            ]
            _, report = await aggregator.status()
            assert report["strength_texts"] == {"73": 2}
            async with aggregator.session.get(aggregator.aggregator.status_url + "/metrics") as got:
                assert 'marketfeed_aggregator_strength_texts_total{feeder="73"} 2.0' in (
                    await got.text()
                )

    asyncio.run(scenario())


# --- the same signal again --------------------------------------------------------------------------


def test_an_idempotency_key_gives_the_first_answer_again_and_after_a_restart(
    tmp_path: Path,
) -> None:
    key = {"Idempotency-Key": "order-1"}

    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            first = await aggregator.post("73", 0.9, headers=key)
            await asyncio.sleep(0.02)
            assert await aggregator.post("73", 0.9, headers=key) == first
            status, answer = await aggregator.post("73", 0.8, headers=key)
            assert (status, answer["detail"][0]["msg"]) == (
                422,
                "this Idempotency-Key was used with another body",
            )
        async with door(tmp_path) as aggregator:
            assert await aggregator.post("73", 0.9, headers=key) == first
            assert (await aggregator.post("73", 0.8, headers=key))[0] == 422
            assert rows(tmp_path, "SELECT count(*) FROM signal") == [(1,)]
            bad = {"Idempotency-Key": "x" * 201}
            assert (await aggregator.post("73", 0.9, headers=bad))[0] == 422

    asyncio.run(scenario())


def test_a_key_from_before_bodies_were_kept_gives_its_answer_again(tmp_path: Path) -> None:
    key = {"Idempotency-Key": "order-1"}
    body = b'{"pair":"BTC/USDT:USDT","feeder_id":73,"confidence":0.85}'

    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            first = await aggregator.send(body, headers=key)
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
            db.execute("UPDATE signal SET body = ?", (hashlib.sha256(body).digest(),))
            db.commit()
        async with door(tmp_path) as aggregator:
            assert await aggregator.send(body, headers=key) == first
            assert (await aggregator.send(body + b" ", headers=key))[0] == 422

    asyncio.run(scenario())


def test_concurrent_duplicates_count_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            key = {"Idempotency-Key": "order-2"}
            answers = await asyncio.gather(
                *(aggregator.post("73", 0.9, headers=key) for _ in range(20))
            )
            assert len({answer["status"] for _, answer in answers}) == 1
            answers = await asyncio.gather(*(aggregator.post("74", 0.9) for _ in range(20)))
            assert {status for status, _ in answers} == {200}
            assert sum("repeated" in answer["status"] for _, answer in answers) == 19
            assert rows(tmp_path, "SELECT feeder, count(*) FROM vote GROUP BY feeder") == [
                ("73", 1),
                ("74", 1),
            ]

    asyncio.run(scenario())


# --- passwords --------------------------------------------------------------------------------------


def test_one_account_per_feeder(tmp_path: Path) -> None:
    accounts = [
        {"username": "f75", "hash": hash_password("invented-75"), "feeder": "75"},
        {"username": "f73", "hash": hash_password("invented-73"), "feeder": "73"},
    ]
    f75 = ("f75", "invented-75")

    async def scenario() -> None:
        async with door(tmp_path, accounts=accounts) as aggregator:
            assert (await aggregator.post("75c", 0.9, auth=f75))[0] == 200
            assert (await aggregator.send({"pair": PAIR, "confidence": 0.9}, auth=f75))[0] == 200
            status, answer = await aggregator.post("73", 0.9, auth=f75)
            assert (status, answer["detail"][0]["loc"]) == (422, ["body", "feeder_id"])
            for wrong in (("f75", "invented-73"), ("f74", "invented-75"), ("f75", ""), None):
                status, answer = await aggregator.post("75", 0.9, auth=wrong)
                assert (status, answer) == (401, {"detail": "Unauthorized"})

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic !!!", "Basic Zm9v", "Bearer x", "Basic \x80", "Basic " + "A" * 4000],
)
def test_a_header_that_is_none(tmp_path: Path, header: str) -> None:
    async def scenario() -> None:
        keeper = Doorkeeper([], time.monotonic)
        assert await keeper.who(header, "127.0.0.1") == "wrong"
        keeper.close()

    asyncio.run(scenario())


def test_a_guesser_is_limited_and_locks_nobody_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            assert (await aggregator.post("73", 0.9))[0] == 200
            guesses = [("fleet", f"guess-{number}") for number in range(3 * FAILURES)]
            found = await asyncio.gather(
                *(aggregator.get("version", auth=guess) for guess in guesses)
            )
            statuses = [status for status, _ in found]
            # One attempt of those was the feeder's own; one or the other has its turn all the same.
            assert FAILURES <= statuses.count(401) < 2 * FAILURES
            assert statuses.count(429) == 3 * FAILURES - statuses.count(401)
            # From the guesser's own address, with a password that was right from there before.
            assert (await aggregator.post("74", 0.9))[0] == 200
            assert (await aggregator.status())[1]["healthy"]

    asyncio.run(scenario())


async def rush(
    keeper: Doorkeeper, now: list[float], seconds: float, names: Sequence[str]
) -> tuple[dict[str, float], Counter[tuple[str, str]]]:
    """200 guesses/s at `names` and a post of each account every 0.5 s, all from one address.

    Returns when (s) each account was let in first, and how many guesses at which name got which answer.
    """
    let_in: dict[str, float] = {}
    answers: Counter[tuple[str, str]] = Counter()
    for number in range(round(seconds * 200)):
        now[0] = number / 200
        name = names[number % len(names)]
        answer = await keeper.who(basic((name, f"guess-{number}"))["Authorization"], "10.0.0.1")
        assert isinstance(answer, str)
        answers[name, answer] += 1
        for index, account in enumerate(ACCOUNTS):
            if number % 100 == 20 * index:
                header = basic((account, f"right-{account}"))["Authorization"]
                found = await keeper.who(header, "10.0.0.1")
                assert isinstance(found, Caller) or found == "limited"
                if isinstance(found, Caller):
                    let_in.setdefault(account, now[0])
    return let_in, answers


ACCOUNTS = ("f73", "f74", "f75", "f79", "fleet")


def restarted(now: list[float]) -> Doorkeeper:
    return Doorkeeper(
        [Account(username=name, hash=quick_hash(f"right-{name}")) for name in ACCOUNTS],
        lambda: now[0],
    )


@pytest.mark.parametrize(
    "names",
    [("admin", "root", "freqtrader"), (*ACCOUNTS, "admin"), ("f73",)],
    ids=["unknown names", "every account", "one account"],
)
def test_guesses_after_a_restart_lock_no_account_out(names: tuple[str, ...]) -> None:
    async def scenario() -> None:
        now = [0.0]
        keeper = restarted(now)
        # The guesses are there before the first feeder.
        for number in range(20 * FAILURES):
            name = names[number % len(names)]
            await keeper.who(basic((name, f"before-{number}"))["Authorization"], "10.0.0.1")
        let_in, answers = await rush(keeper, now, 3.0, names)
        assert let_in.keys() == set(ACCOUNTS)
        assert max(let_in.values()) <= 2.0
        # What is hashed of an account's guesses does not rise with their number.
        for name in names:
            assert answers[name, "wrong"] <= 4
        keeper.close()

    asyncio.run(scenario())


def test_a_feeder_with_an_old_password_takes_nothing_from_the_others() -> None:
    async def scenario() -> None:
        now = [0.0]
        keeper = restarted(now)
        for number in range(10 * FAILURES):
            now[0] = number / 10
            old = basic(("fleet", "right-last-year"))["Authorization"]
            assert await keeper.who(old, "10.0.0.1") == "wrong"
        header = basic(("fleet", "right-fleet"))["Authorization"]
        assert isinstance(await keeper.who(header, "10.0.0.1"), Caller)
        assert keeper.limited() == 0
        keeper.close()

    asyncio.run(scenario())


def test_the_limiter_forgets_in_time_and_counts_networks() -> None:
    limiter = Limiter()
    for second in range(FAILURES):
        assert limiter.wait_s("2001:db8::1", float(second)) == 0.0
        limiter.fail("2001:db8::1", float(second))
    assert limiter.wait_s("2001:db8::ffff", 20.0) == 40.0
    assert limiter.wait_s("2001:db8:1::1", 20.0) == 0.0
    assert limiter.limited(20.0) == 1
    assert limiter.wait_s("2001:db8::1", 60.0) == 0.0
    for number in range(20_000):
        limiter.fail(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}", 100.0)
    assert len(limiter._failures) == 10_000


def test_hashes() -> None:
    hashed = hash_password("invented")
    assert hashed != hash_password("invented")
    accounts = AggregatorSettings.model_validate(
        {"accounts": [{"username": "fleet", "hash": hashed}]}
    ).accounts
    assert accounts == (Account(username="fleet", hash=hashed),)

    async def scenario() -> None:
        keeper = Doorkeeper([Account(username="fleet", hash=hashed)], time.monotonic)
        header = basic(("fleet", "invented"))["Authorization"]
        assert not isinstance(await keeper.who(header, "::1"), str)
        assert await keeper.who(basic(("fleet", "Invented"))["Authorization"], "::1") == "wrong"
        assert await keeper.who(basic(("fleet", "invénted"))["Authorization"], "::1") == "wrong"
        keeper.close()

    asyncio.run(scenario())


# --- bytes ------------------------------------------------------------------------------------------


async def talk(aggregator: Running, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Write `parts` with pauses on a raw connection; returns all that is answered until it is closed."""
    parsed = urlsplit(aggregator.url)
    reader, writer = await asyncio.open_connection(parsed.hostname, parsed.port)
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def head(length: int, auth: bool = True) -> bytes:
    lines = [
        "POST /api/v1/forceenter HTTP/1.1",
        "Host: x",
        f"Content-Length: {length}",
        *([f"Authorization: {basic(FLEET)['Authorization']}"] if auth else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_16_kb_are_enough(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            fits = json.dumps({"pair": PAIR, "enter_tag": "from 73 conf=0.9 "}).encode()
            fits = fits + b" " * (16 * 1024 - len(fits))
            assert (await aggregator.send(fits))[0] == 200
            status, answer = await aggregator.send(fits + b" ")
            assert (status, answer) == (413, {"detail": "Request body is larger than 16384 bytes"})
            chunked = (
                head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
                *([b"1000\r\n" + b" " * 4096 + b"\r\n"] * 5),
            )
            assert (await talk(aggregator, *chunked)).startswith(b"HTTP/1.1 413 ")

    asyncio.run(scenario())


def test_what_the_plain_server_does_as_an_application_does(tmp_path: Path) -> None:
    """HEAD, other methods, and clients that ask before they send a body."""

    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            close = b"Connection: close\r\n"
            ping = b"HEAD /api/v1/ping HTTP/1.1\r\nHost: x\r\n" + close + b"\r\n"
            answer = await talk(aggregator, ping)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\n")
            for line, status in (
                (b"DELETE /api/v1/ping", b"405"),
                (b"PUT /api/v1/nothing", b"405"),
                (b"GET /", b"404"),
                (b"GET /api/v1/ping?token=x", b"200"),
            ):
                answer = await talk(
                    aggregator, line + b" HTTP/1.1\r\nHost: x\r\n" + close + b"\r\n"
                )
                assert answer.startswith(b"HTTP/1.1 " + status), line
            body = json.dumps({"pair": PAIR, "enter_tag": "from 73 conf=0.9"}).encode()
            asks = head(len(body))[:-2] + close + b"Expect: 100-continue\r\n\r\n"
            answer = await talk(aggregator, asks, body, pause_s=0.2)
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
            refused = head(len(body), auth=False)[:-2] + close + b"Expect: 100-continue\r\n\r\n"
            assert (await talk(aggregator, refused)).startswith(b"HTTP/1.1 401 ")
            # In pieces, and two on one connection.
            both = head(len(body)) + body + head(len(body))[:-2] + close + b"\r\n" + body
            answer = await talk(aggregator, both[:-30], both[-30:], pause_s=0.2)
            assert answer.count(b"HTTP/1.1 200 ") == 2
            status = aggregator.aggregator._counters.requests
            assert status == Counter({200: 5, 405: 2, 404: 1, 401: 1})

    asyncio.run(scenario())


def test_trickled_headers_and_bodies_are_cut_off_while_feeders_post(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            assert (await aggregator.post("73", 0.9))[0] == 200
            trickle = [bytes([sign]) for sign in head(100)]
            body = [head(100), *[b" "] * 40]
            started_s = time.monotonic()
            slow = [
                *(asyncio.create_task(talk(aggregator, *trickle, pause_s=0.2)) for _ in range(20)),
                *(asyncio.create_task(talk(aggregator, *body, pause_s=0.2)) for _ in range(20)),
                asyncio.create_task(talk(aggregator)),
            ]
            posts = 0
            while time.monotonic() - started_s < TIMEOUT_S:
                status, _ = await aggregator.post("74", 0.9, pair=f"P{posts}/USDT:USDT")
                assert status == 200
                posts += 1
                await asyncio.sleep(0.05)
            answers = await asyncio.gather(*slow)
            assert set(answers[:20]) == {b""}
            # Who writes on meets a closed connection, and may lose the answer by that.
            assert all(answer[:13] in (b"HTTP/1.1 408 ", b"") for answer in answers[20:40])
            assert answers[40] == b""
            assert rows(tmp_path, "SELECT count(*) FROM signal") == [(posts + 1,)]

    asyncio.run(scenario())


def test_a_wrong_password_is_answered_before_the_body(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            answer = await talk(aggregator, head(16_000, auth=False))
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"WWW-Authenticate" not in answer

    asyncio.run(scenario())


def test_a_cut_in_the_middle_of_a_body_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            parsed = urlsplit(aggregator.url)
            for _ in range(5):
                _, writer = await asyncio.open_connection(parsed.hostname, parsed.port)
                writer.write(head(100) + b'{"pair": ')
                await writer.drain()
                writer.transport.abort()
            assert (await aggregator.post("73", 0.9))[0] == 200
            assert rows(tmp_path, "SELECT count(*) FROM signal") == [(1,)]
            _, status = await aggregator.status()
            assert status["healthy"]

    asyncio.run(scenario())


def test_200_signals_side_by_side_are_all_stored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with door(tmp_path) as aggregator:
            answers = await asyncio.gather(
                *(
                    aggregator.post(feeder, 0.9, pair=f"P{number}/USDT:USDT")
                    for number in range(40)
                    for feeder in ("73", "74", "75a", "79")
                )
            )
            assert {status for status, _ in answers} == {200}
            assert rows(tmp_path, "SELECT count(*) FROM vote") == [(160,)]
            # In groups: fewer commits than signals.
            assert aggregator.aggregator.report().commits < 160
            await until(lambda: aggregator.aggregator.report().open_windows == 40)

    asyncio.run(scenario())
