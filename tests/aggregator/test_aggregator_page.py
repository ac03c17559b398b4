"""The aggregator's page in a real Chromium: votes that are posted, decided and forwarded while it is open."""

import asyncio
import base64
import os
from collections.abc import Callable
from pathlib import Path

import uvloop
from bot import CountingBot
from chromium import Chrome, axe_violations, browser, complaints
from running import DEADLINE_S, PAIR, running, settings

from marketfeed.aggregator.events import recent
from tests.waiting import until


def test_votes_and_forwards_show_while_the_page_is_open(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            CountingBot() as bot,
            running(settings(tmp_path, {"long": bot.url}, min_agreements=2)) as line,
        ):
            url = line.aggregator.status_url
            with browser(tmp_path / "chromium") as driver:
                await asyncio.to_thread(driver.get, url + "/")

                async def shows(name: str, *words: str) -> None:
                    async with asyncio.timeout(DEADLINE_S):
                        shown = ""
                        while not all(word in shown for word in words):
                            await asyncio.sleep(0.1)
                            shown = await _text(driver, name)

                await shows("headline", "● All is well")
                await shows("decided", "None yet")
                await shows("posted", "None yet")
                await shows("refused", "None yet")
                for feeder in ("73", "74"):
                    assert (await line.post(feeder, 0.9))[0] == 200
                await until(lambda: bool(bot.posts), "the forward")
                await shows("posted", PAIR, "73", "74", "0.90", "voted")
                await shows("decided", PAIR, "forward", "2 of 5", "● accepted (200)")
                # One vote is not enough: the page says why nothing was forwarded.
                other = "ETH/USDT:USDT"
                assert (await line.post("75a", 0.8, pair=other))[0] == 200
                await shows("decided", other, "skip", "1 of 5", "–")
                # Who was refused, and why: also on a phone, without scrolling sideways.
                assert (await line.post("73"))[0] == 422
                for _ in range(2):
                    assert (await line.post("73", 0.9, auth=("fleet", "a guess")))[0] == 401
                await shows("refused", "account fleet at 127.0.0.1, feeder 73", "422 no confidence")
                await shows("refused", "401 wrong password", "2")
                await shows("warnings", "account fleet at 127.0.0.1: 2 requests refused since")
                await shows("headline", "● All is well")
                await shows("panels", "Bot of long", "running", "USDT, futures")
                bot.config = {"state": "stopped", "stake_currency": "USDC"}
                await shows("reasons", "bot of long: it is not running: its state is stopped")
                await shows("warnings", "bot of long: its stake_currency is USDC")
                assert await asyncio.to_thread(axe_violations, driver) == []
                script: Callable[[str], object] = driver.execute_script
                for width, height in ((390, 844), (320, 640)):
                    await asyncio.to_thread(driver.resize, width, height)
                    async with asyncio.timeout(DEADLINE_S):
                        while await asyncio.to_thread(script, _WIDTHS) != [width] * 2:
                            await asyncio.sleep(0.1)
                    outside = "the cells of refused posts that end beyond the edge"
                    assert await asyncio.to_thread(script, _BEYOND) == [], outside
                    assert await asyncio.to_thread(axe_violations, driver) == []
                    if folder := os.environ.get("SCREENSHOTS"):
                        await asyncio.to_thread(_shoot, driver, Path(folder) / f"{width}.png")
                assert complaints(driver) == []
            found = recent(tmp_path / "ledger.db", 2)
            assert [one.pair for one in found.posted] == [other, PAIR]
            assert [one.state for one in found.decided] == [None, "accepted"]

    uvloop.run(run())


_WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"
_BEYOND = """return [...document.querySelectorAll("#refused td, #warnings li")]
    .filter((one) => one.getBoundingClientRect().right > window.innerWidth).map((one) => one.textContent)"""


def _shoot(driver: Chrome, file: Path) -> None:
    """The whole page as a picture."""
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    file.write_bytes(base64.b64decode(shot["data"]))


async def _text(driver: Chrome, name: str) -> str:
    def read() -> str:
        return str(driver.execute_script(f"return document.getElementById('{name}').innerText"))

    return await asyncio.to_thread(read)
