"""Feeders at 200 signals/s beside a guesser at 200 passwords/s: what a valid post waits for its answer.

By hand: `python tests/aggregator/load_run.py`; prints one line of figures. No test: it needs a quiet machine.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
from bot import CountingBot
from running import FLEET, LONG, Process, basic, config, rows

RATE, SECONDS = 200, 10


async def main(path: Path) -> None:
    waits: list[float] = []
    posts: Counter[int] = Counter()
    guesses: Counter[int] = Counter()
    async with CountingBot() as bot, aiohttp.ClientSession() as session:
        file = config(path, {"long": bot.url}, window_s=3, expire_s=60)
        process = await asyncio.to_thread(Process, file)
        url = process.url + "/api/v1/forceenter"

        async def post(number: int) -> None:
            tag = f"from {random.choice(LONG)} conf={random.randint(70, 99) / 100}"
            body = {"pair": f"P{number % 150}/USDT:USDT", "enter_tag": tag}
            started_s = time.perf_counter()
            async with session.post(url, json=body, headers=basic(FLEET)) as answer:
                await answer.read()
                posts[answer.status] += 1
            waits.append(time.perf_counter() - started_s)

        async def guess(number: int) -> None:
            header = basic((FLEET[0], f"guess {number}"))
            async with session.post(url, json={}, headers=header) as answer:
                guesses[answer.status] += 1

        await post(0)
        waits.clear()
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(RATE * SECONDS):
                group.create_task(post(number))
                group.create_task(guess(number))
                await asyncio.sleep(max(started_s + number / RATE - time.perf_counter(), 0))
        await asyncio.sleep(5)
        await asyncio.to_thread(process.stop)
        ((stored,),) = rows(path, "SELECT count(*) FROM signal")
        lags = sorted(r[0] for r in rows(path, "SELECT sent - decided FROM forwarded"))
    waits.sort()
    p50, p99 = (1000 * waits[int(len(waits) * part)] for part in (0.5, 0.99))
    sys.stdout.write(
        f"posts {dict(posts)} guesses {dict(guesses)} p50 {p50:.1f} p99 {p99:.1f} "
        f"max {1000 * waits[-1]:.1f} ms; stored {stored}; "
        f"forwards {len(lags)}, orders {len(bot.posts)}, at most {bot.most_at_once} at once, decided to "
        f"sent p50 {lags[len(lags) // 2]} max {lags[-1]} ms\n"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
