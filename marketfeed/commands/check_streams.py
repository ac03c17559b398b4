"""`marketfeed check --live`: proves every stream by data, through the same feed that the collector uses.

An ACK proves nothing: Binance ACKs unknown names and stays silent, and its unrouted path delivers no
kline and no mark price without any error.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from marketfeed import schema
from marketfeed.binance.backoff import ConnectionStatus, ConnectLimiter, FeedOptions
from marketfeed.binance.feed import Feed
from marketfeed.binance.rollover import stream_of
from marketfeed.binance.symbols import Instrument, stream_name
from marketfeed.commands.finding import Finding
from marketfeed.pairs.selection import Listing
from marketfeed.settings.model import ExchangeSettings

NAMED: Final = 10

Progress = Callable[[str, float], None]


class StreamsSeen:
    """Which streams have brought data, by their names in combined frames."""

    def __init__(self) -> None:
        self.frames: Counter[str] = Counter()

    def on_frame(self, frame: bytes, connection: str) -> None:
        """Take in one frame of a connection."""
        if name := stream_of(frame):
            self.frames[name.decode("utf-8", "replace")] += 1


async def prove_streams(
    settings: ExchangeSettings, listing: Listing, seconds: float, progress: Progress
) -> list[Finding]:
    """Subscribe all streams for up to `seconds` (wall) and report which bring data.

    A silent mark price is bad: it comes every 1 or 3 s. A silent kline stream is bad when another
    timeframe of the same pair has brought several frames meanwhile (each trade shows in all of them),
    and a warning when the pair has not traded at all. Ends early once everything has brought data.
    """
    names = _names(listing.selection.instruments, settings)
    wanted = [name for by_channel in names.values() for name in by_channel.values()]
    seen = StreamsSeen()
    problems: list[str] = []
    feed = Feed(
        FeedOptions(ws_url=settings.ws_url),
        listing.selection.instruments,
        wanted,
        on_frame=seen.on_frame,
        on_state=lambda status: _note_problem(status, problems),
        limiter=ConnectLimiter(),
        name="check",
    )
    started_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        group.create_task(feed.run())
        while (passed_s := time.monotonic() - started_s) < seconds:
            there = sum(name in seen.frames for name in wanted)
            progress(f"{there} of {len(wanted)} streams bring data", passed_s / seconds)
            if there == len(wanted):
                break
            await asyncio.sleep(min(0.2, seconds))
        await feed.stop()
    return [
        *(Finding("connection", "warning", text) for text in dict.fromkeys(problems)),
        *_judge(names, seen.frames, passed_s),
    ]


def _names(
    instruments: Sequence[Instrument], settings: ExchangeSettings
) -> dict[str, dict[str, str]]:
    """Pair -> channel -> stream."""
    return {
        i.pair: {
            channel: stream_name(i, channel, settings.mark_price_every.ms)
            for channel in (*settings.timeframes, schema.MARK_PRICE)
        }
        for i in instruments
    }


def _note_problem(status: ConnectionStatus, problems: list[str]) -> None:
    if (
        status.last_error
        and status.state in ("failed", "closed")
        and status.last_error != "stopped"
    ):
        problems.append(f"{status.name} {status.state}: {status.last_error}")


def _judge(
    names: dict[str, dict[str, str]], frames: dict[str, int], passed_s: float
) -> list[Finding]:
    marks = [by_channel[schema.MARK_PRICE] for by_channel in names.values()]
    silent_marks = [stream for stream in marks if stream not in frames]
    silent_klines: list[str] = []
    quiet: list[str] = []
    klines = 0
    for pair, by_channel in names.items():
        counts = {s: frames.get(s, 0) for c, s in by_channel.items() if c != schema.MARK_PRICE}
        klines += sum(count > 0 for count in counts.values())
        if max(counts.values(), default=0) > 1:
            silent_klines += [stream for stream, count in counts.items() if not count]
        elif not all(counts.values()):
            quiet.append(pair)
    findings = [
        _all_or_bad("mark prices", len(names) - len(silent_marks), silent_marks, passed_s),
        _all_or_bad("klines", klines, silent_klines, passed_s),
    ]
    if quiet:
        text = f"{len(quiet)} pairs have not traded meanwhile: {_listed(quiet)}"
        findings.append(Finding("klines", "warning", text))
    return findings


def _all_or_bad(subject: str, alive: int, silent: Sequence[str], passed_s: float) -> Finding:
    if silent:
        return Finding(subject, "bad", f"{len(silent)} streams are silent: {_listed(silent)}")
    return Finding(subject, "good", f"{alive} streams brought data within {passed_s:.0f} s")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
