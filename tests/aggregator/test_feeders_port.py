"""The feeders' port: strangers without a password take no descriptor that an order to a bot needs."""

import asyncio
import contextlib
import sys
from pathlib import Path

import aiohttp
from bot import CountingBot
from running import FLEET, PAIR, Process, basic, config, states

from tests.waiting import until

DESCRIPTORS = 160
STRANGERS = 300
# Limits itself before it becomes `marketfeed aggregate`, as systemd's LimitNOFILE does.
LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
PING = b"GET /api/v1/ping HTTP/1.1\r\nHost: a\r\n\r\n"


async def stay(port: int) -> None:
    """Be there, and ask what needs no password; whoever is cut comes again."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(PING)
                while await reader.read(4_096):
                    await asyncio.sleep(1.0)
                    writer.write(PING)
            finally:
                writer.close()
        await asyncio.sleep(0.2)


def test_strangers_keep_no_order_from_a_bot(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with CountingBot() as bot, aiohttp.ClientSession() as session:
            file = config(tmp_path, {"long": bot.url}, min_agreements=1, window_s=0.2, expire_s=30)
            command = (sys.executable, "-c", LIMITED, sys.executable, "-m", "marketfeed")
            process = await asyncio.to_thread(Process, file, command)
            port = int(process.url.rpartition(":")[2])
            strangers = [asyncio.create_task(stay(port)) for _ in range(STRANGERS)]
            try:

                def opened() -> int:
                    return len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))

                await until(lambda: opened() > DESCRIPTORS // 4, "strangers")
                body = {"pair": PAIR, "side": "long", "feeder_id": "73", "confidence": 0.9}

                async def posts() -> bool:
                    # A burst of strangers may cost a connection its place before its request has come.
                    with contextlib.suppress(aiohttp.ClientError):
                        url = f"{process.url}/api/v1/forceenter"
                        async with session.post(url, json=body, headers=basic(FLEET)) as answer:
                            return answer.status == 200
                    return False

                async with asyncio.timeout(120.0):
                    while not await posts():
                        await asyncio.sleep(0.1)
                await until(lambda: states(tmp_path) == ["accepted"], "an order to the bot")
                assert opened() < DESCRIPTORS
            finally:
                for task in strangers:
                    task.cancel()
                await asyncio.gather(*strangers, return_exceptions=True)
                assert await asyncio.to_thread(process.stop) == 0
            assert len(process.lines) < 100
            assert not [line for line in process.lines if "system resource" in line]

    asyncio.run(scenario())
