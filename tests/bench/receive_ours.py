"""Our side of a measurement: the whole collector, in one process, as `marketfeed run` starts it."""

import asyncio
import json
import logging
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
from aiohttp import web
from numpy.typing import NDArray

from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.collector.collector import Collector
from marketfeed.counters import CollectorCounters, cpu_s
from marketfeed.settings.load import load_settings
from tests.bench import jobs, workload
from tests.bench.tape import event_times

_LOOK_EVERY_S: Final = 0.01


class _TapeClock(ExchangeClock):
    """The exchange's clock as the tape has it: at the event of the frame that was received last.

    So nothing is early or late for the collector's deadlines, however fast the frames come.
    """

    def __init__(self, event_ms: NDArray[np.int64]) -> None:
        super().__init__()
        self.counters = CollectorCounters()
        self._event_ms = event_ms
        # Whatever this host's clock says: no frame of the tape may be refused for its stamp.
        super().set_server_time(int(event_ms[-1]), 0.0)

    def now_ms(self) -> int:
        last = len(self._event_ms) - 1
        return int(self._event_ms[min(self.counters.frames, last)])

    def elapsed_s(self) -> float:
        return (self.now_ms() - int(self._event_ms[0])) / 1_000

    def set_server_time(self, *_: object) -> None:
        pass


async def _rest(time_ms: int) -> tuple[web.AppRunner, str]:
    """Serve what a start asks for: the time, and the pairs. Both are over before anything is measured."""

    async def server_time(request: web.Request) -> web.Response:
        return web.json_response({"serverTime": time_ms})

    async def info(request: web.Request) -> web.Response:
        return web.Response(body=workload.exchange_info(), content_type="application/json")

    application = web.Application()
    application.add_routes(
        [web.get("/fapi/v1/time", server_time), web.get("/fapi/v1/exchangeInfo", info)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def _configure(job: jobs.ReceiveJob, rest_url: str) -> Path:
    path = Path(job.journal).with_name("config.yaml")
    settings = {
        "exchange": {
            "ws_url": f"ws://127.0.0.1:{job.port}",
            "rest_url": rest_url,
            "pairs": "all",
            "timeframes": list(job.timeframes),
        },
        "journal": {"path": job.journal},
        "status": {"port": 0},
        "history": {"days": 0},
    }
    # JSON is YAML.
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def _gaps_since(journal_path: Path, start_ms: int) -> int:
    """Candles that were missed and had not closed by the start: of those before, the tape has no frame."""
    with closing(sqlite3.connect(journal_path)) as db:
        text = """SELECT count(*) FROM gap WHERE substr(kind, 1, 7) = 'candle_' AND "end" > ?"""
        (count,) = db.execute(text, (start_ms,)).fetchone()
    return int(count)


async def _receive(job: jobs.ReceiveJob) -> jobs.Received:
    clock = _TapeClock(event_times(Path(job.tape)))
    first_ms = clock.now_ms()
    runner, rest_url = await _rest(clock.now_ms())
    collector = Collector(load_settings(_configure(job, rest_url), environ={}), clock)
    clock.counters = counters = collector._counters
    stop = asyncio.Event()
    running = asyncio.create_task(collector.run(stop))

    async def until(frames: int) -> int:
        while (seen := counters.frames - counters.answers) < frames:
            if running.done():
                await running
                raise RuntimeError("the collector has ended")
            await asyncio.sleep(_LOOK_EVERY_S)
        return seen

    first = await until(max(job.skip, 1))
    before_s, started_s = cpu_s(), time.monotonic()
    last = await until(job.frames)
    used_s, lasted_s = cpu_s() - before_s, time.monotonic() - started_s
    stop.set()
    await running
    stored_cpu_s, stored_wall_s = cpu_s() - before_s, time.monotonic() - started_s
    await runner.cleanup()
    return jobs.Received(
        frames=last - first,
        cpu_s=used_s,
        wall_s=lasted_s,
        stored_cpu_s=stored_cpu_s,
        stored_wall_s=stored_wall_s,
        commits=counters.commits,
        rejects=sum(counters.rejects.values()),
        gaps=_gaps_since(Path(job.journal), first_ms),
    )


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    jobs.send(uvloop.run(_receive(jobs.take(jobs.ReceiveJob))))
    jobs.until_dismissed()
