"""100,000 hostile requests while feeders post 200 signals/s and others trickle: what feeders wait.

By hand: `python tests/aggregator/fuzz_run.py [REQUESTS] [PER_SECOND] [SEED]`; prints one JSON line. The
attackers are a process of their own. Exit 1 when a valid post failed or was lost, or anything got a 5xx.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
import uvloop
from bot import CountingBot
from hostile import Hostile, assault, trickle
from running import FLEET, LONG, Login, Process, basic, config, rows

from marketfeed.aggregator.auth import hash_password

RATE = 200
TRICKLERS = 20
FUZZ: Login = ("fuzz", "invented-fuzz-password")


async def attack(url: str, count: int, rate: float, seed: int) -> None:
    """What the attackers' process does."""
    ended = False
    auth = basic(FUZZ)["Authorization"]
    head = f"POST /api/v1/forceenter HTTP/1.1\r\nHost: x\r\nAuthorization: {auth}\r\n".encode()
    body = b"Content-Length: 900\r\n\r\n"
    tricklers = [
        asyncio.create_task(trickle(url, data, lambda: ended))
        for data in [head * 9, head + body + b" " * 900] * (TRICKLERS // 2)
    ]
    # So that its password is known to be right from here, whatever is guessed later.
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/api/v1/version", headers=basic(FUZZ)) as answer,
    ):
        assert answer.status == 200
    found = await assault(url, Hostile(seed, FUZZ), count, rate)
    ended = True
    cuts = sum(await asyncio.gather(*tricklers))
    sys.stdout.write(
        json.dumps({"statuses": dict(sorted(found.items())), "trickles cut off": cuts})
    )


async def feed(path: Path, count: int, rate: float, seed: int) -> dict[str, object]:
    waits: list[float] = []
    posts: Counter[int] = Counter()
    accounts = [{"username": name, "hash": hash_password(word)} for name, word in (FLEET, FUZZ)]
    async with (
        CountingBot() as bot,
        CountingBot() as short_bot,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        bots = {"long": bot.url, "short": short_bot.url}
        file = config(path, bots, accounts=accounts, window_s=3, expire_s=60)
        process = await asyncio.to_thread(Process, file)
        url = process.url + "/api/v1/forceenter"

        async def post(number: int) -> None:
            tag = f"from {random.choice(LONG)} conf={random.randint(70, 99) / 100}"
            body = {"pair": f"P{number % 150}/USDT:USDT", "enter_tag": tag}
            started_s = time.perf_counter()
            try:
                async with session.post(url, json=body, headers=basic(FLEET)) as answer:
                    await answer.read()
                    posts[answer.status] += 1
            except aiohttp.ClientError:
                posts[0] += 1
            waits.append(time.perf_counter() - started_s)

        await post(0)
        waits.clear()
        attackers = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "attack", process.url, str(count), str(rate), str(seed),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        communicating = asyncio.create_task(attackers.communicate())
        started_s, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while not communicating.done():
                number += 1
                group.create_task(post(number))
                await asyncio.sleep(max(started_s + number / RATE - time.perf_counter(), 0))
        seconds = time.perf_counter() - started_s
        report = json.loads((await communicating)[0])
        await asyncio.sleep(4)
        code = await asyncio.to_thread(process.stop)
        ((stored,),) = rows(path, "SELECT count(*) FROM signal WHERE account = 'fleet'")
        ((fuzzed,),) = rows(path, "SELECT count(*) FROM signal WHERE account = 'fuzz'")
        twice = rows(path, "SELECT 1 FROM forward WHERE attempts > 1")
    waits.sort()
    p50, p99 = (round(1000 * waits[int(len(waits) * part)], 1) for part in (0.5, 0.99))
    failed = sum(times for status, times in report["statuses"].items() if status.startswith("5"))
    errors = [line for line in process.lines if "Traceback" in line or "Unhandled" in line]
    good = (
        failed == 0
        and set(posts) == {200}
        and stored == posts[200]
        and not errors
        and not twice
        and code == 0
    )
    return {
        "good": good,
        "requests": count,
        "per s": round(count / seconds),
        **report,
        "posts": dict(posts),
        "posts per s": round(len(waits) / seconds),
        "stored": stored,
        "stored of the attackers": fuzzed,
        "orders": len(bot.posts) + len(short_bot.posts),
        "p50 ms": p50,
        "p99 ms": p99,
        "max ms": round(1000 * waits[-1], 1),
        "server errors logged": errors[:3],
    }


def main() -> int:
    if sys.argv[1:2] == ["attack"]:
        url, count, rate, seed = sys.argv[2:6]
        uvloop.run(attack(url, int(count), float(rate), int(seed)))
        return 0
    numbers = [*map(int, sys.argv[1:]), *(100_000, 500, 1)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as directory:
        report = uvloop.run(feed(Path(directory), *numbers))
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if report["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
