"""The examples of docs/aggregator.md, posted as they stand there, to the tag of a trade at either bot.

The page's tag, body and command are read from the page: what it promises is what is run.
"""

import argparse
import asyncio
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Final

from freqtrade_client import FtRestClient

from marketfeed.simulator.catalogue import choose_pairs
from tests.freqtrade.command import Figures, Progress, arguments, require, run
from tests.freqtrade.harness import ROOT
from tests.freqtrade.stage import FEEDERS, FLEET, Stage, staged
from tests.waiting import until

PAGE: Final = ROOT / "docs" / "aggregator.md"
_ENSEMBLE: Final = re.compile(r"`(long|short) ensemble (\d)/(\d) conf=(\d\.\d\d) from=([\w.-]+)`")
_BODY: Final = re.compile(r"-d '(\{.*?\})'")
_TAG: Final = re.compile(r"`(long from \S+ conf=[\d.]+ \([^`]*\))`")
CONFIDENCES: Final = (0.85, 0.72, 0.88)
"""Of the documented ensemble: their mean is 0.82, and the last is the primary feeder's."""


def page_says(pattern: re.Pattern[str], what: str) -> re.Match[str]:
    """What the page has. Raises Broken when it has none."""
    found = pattern.search(PAGE.read_text(encoding="utf-8"))
    require(found, f"docs/aggregator.md has no {what} any more")
    assert found is not None
    return found


async def _trade(stage: Stage, pair: str, side: str) -> dict[str, Any]:
    """The trade of a pair, once it is there."""

    def found() -> list[dict[str, Any]]:
        answer = stage.bots[side].api("GET", "status")
        return [trade for trade in answer.body or () if trade["pair"] == pair]

    await until(found, f"a trade of {pair} at the {side} bot", timeout_s=60.0)
    (trade,) = found()
    return trade


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Post the documented examples, and compare the tags of trades with what the page says."""
    figures: list[tuple[str, object]] = []
    findings: list[str] = []
    promised = page_says(_ENSEMBLE, "tag of an ensemble")
    tag = page_says(_TAG, "tag of a feeder")[1]
    body = json.loads(page_says(_BODY, "body for curl")[1])
    _, count, of, _, primary = promised.groups()
    names = ("73", "74", primary)
    pairs = choose_pairs(4)

    def judge(what: str, trade: dict[str, Any], wanted: str, *, short: bool) -> None:
        figures.append((what, f"{trade['enter_tag']!r}, {trade['leverage']:g}x"))
        if trade["enter_tag"] != wanted or trade["is_short"] != short:
            findings.append(f"{what}: {trade['enter_tag']!r} at {trade['pair']}, not {wanted!r}")

    progress(f"starting two {given.bots} bots")
    async with staged(home, given.bots, window_s=2.0, min_agreements=int(count)) as stage:
        await stage.start()
        client = FtRestClient(stage.url, *FLEET)

        def post(pair: str, feeder_tag: str, **more: Any) -> None:
            answer = client.forceenter(pair, enter_tag=feeder_tag, **{"side": "long"} | more)
            require("counted" in str(answer), f"{feeder_tag!r} was answered {answer}")

        def ensemble(pair: str, side: str, feeders: tuple[str, ...]) -> None:
            for feeder, confidence in zip(feeders, CONFIDENCES, strict=True):
                text = f"{side} from {feeder} conf={confidence} (DQ: profit=3.05%, safety=0.39%)"
                post(pair, text, side=side, leverage=3, order_type="market")

        progress("the ensemble that the page begins with, and its mirror image")
        await asyncio.to_thread(ensemble, pairs[1], "long", names)
        shorts = FEEDERS["short"][:3]
        await asyncio.to_thread(ensemble, pairs[1 + 1], "short", shorts)
        trade = await _trade(stage, pairs[1], "long")
        judge("three of five, long", trade, promised[0].strip("`"), short=False)
        wanted = f"short ensemble {count}/{of} conf=0.82 from={shorts[-1]}"
        judge("three of five, short", await _trade(stage, pairs[2], "short"), wanted, short=True)
        progress("the page's tag and body, with votes that let them pass")
        pair = body["pair"]
        curl = ["curl", "-s", "-u", ":".join(FLEET), "-H", "Content-Type: application/json"]
        url = f"{stage.url}/api/v1/forceenter"
        process = await asyncio.create_subprocess_exec(
            *curl, url, "-d", json.dumps(body), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        require(b"counted" in output, f"{shlex.join(curl[:2])} was answered {output.decode()!r}")
        await asyncio.to_thread(post, pair, tag)
        await asyncio.to_thread(post, pair, "long from 108 conf=0.80")
        named = re.search(r"from (\S+) conf=([\d.]+)", tag)
        assert named is not None
        mean = (body["confidence"] + float(named[2]) + 0.80) / 3
        wanted = f"long ensemble 3/{of} conf={mean:.2f} from={named[1]}"
        judge("the page's curl and tag", await _trade(stage, pair, "long"), wanted, short=False)
        await stage.settled()
        answers = [one.state for one in stage.decisions() if one.forwarded]
        figures.append(("forwards", ", ".join(answers)))
        await stage.stop()
    return figures, findings


def main() -> int:
    """See the module's docstring."""
    return run(prove, arguments("examples", __doc__), "examples of docs/aggregator.md")


if __name__ == "__main__":
    sys.exit(main())
