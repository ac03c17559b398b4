"""The service is killed at random moments while trades close, change and go: the books end up equal."""

import asyncio
import contextlib
import random
import signal
import sys
from pathlib import Path

import aiohttp
import yaml

from marketfeed.bots.verify import verify
from marketfeed.errors import JournalError
from tests.bots.fleet import START_MS, RecordedBot, settings_for, trade
from tests.bots.test_bots_service import config_of

KILLS = 8
SEED = 25


async def started(config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "marketfeed", "bots", "run", "--config", str(config)),
        stderr=asyncio.subprocess.DEVNULL,
    )


def test_kills(tmp_path: Path) -> None:
    draw = random.Random(SEED)

    async def scenario() -> None:
        bot = RecordedBot([trade(n, START_MS + n * 600_000) for n in range(1, 151)])
        async with bot.serving():
            settings = settings_for(tmp_path, {"BOT1": bot.url})
            config = config_of(tmp_path, settings)
            assert yaml.safe_load(config.read_text())["bots"]["fleet"]
            for number in range(KILLS):
                process = await started(config)
                pages = bot.pages
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(60.0):
                        while bot.pages == pages and process.returncode is None:
                            await asyncio.sleep(0.01)
                await asyncio.sleep(draw.uniform(0.0, 0.5))
                process.send_signal(signal.SIGKILL)
                await process.wait()
                bot.trades.append(trade(1000 + number))
                bot.trades.pop(draw.randrange(100))
                bot.trades[draw.randrange(100)]["funding_fees"] = draw.random()
                if number == KILLS // 2:
                    # Another database, with the same ids.
                    bot.trades = [trade(n, START_MS + 10**9 + n * 600_000) for n in range(1, 131)]
            process = await started(config)
            async with asyncio.timeout(120.0), aiohttp.ClientSession() as session:
                while True:
                    # Until the first commit there are no books to compare.
                    with contextlib.suppress(JournalError):
                        (found,) = await verify(settings, session, 0.0)
                        if found.equal:
                            break
                    await asyncio.sleep(0.1)
            process.terminate()
            assert await process.wait() == 0
            assert found.in_books == found.in_bot == len(bot.trades)
            assert found.before > 0

    asyncio.run(scenario())
