"""A fleet's first start: weight of every minute, and minutes until all is there.

`python -m tests.bench.fleet_start --pairs 164 --days 30 --speed 1`: a simulated exchange and a collector with
a fresh journal, in one process. Candles of the shipped timeframes, hourly mark candles and settled rates are
filled. The exchange itself counts the weight. Exit 1 when a minute had more than the setting, a request was
refused, or when it is not done in `--minutes` of exchange time.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from marketfeed import schema
from marketfeed.collector.collector import Collector
from marketfeed.collector.status_report import StatusReport
from marketfeed.settings.model import HistorySettings, Settings
from marketfeed.simulator.server import Simulator, SimulatorOptions

TIMEFRAMES: Final = ("3m", "5m", "15m", "1h")
LOOK_EVERY_MS: Final = 1_000


def settings_for(path: Path, sim: Simulator, pairs: int, days: int, weight: int) -> Settings:
    """The shipped settings, against the simulated exchange."""
    return Settings.model_validate(
        {
            "exchange": {
                "ws_url": sim.ws_url,
                "rest_url": sim.rest_url,
                "pairs": {"top": pairs},
                "timeframes": list(TIMEFRAMES),
            },
            "journal": {"path": str(path)},
            "status": {"port": 0},
            "history": {"days": days, "weight_per_minute": weight},
        }
    )


def parts_left(report: StatusReport) -> dict[str, bool]:
    """What is filled, and whether something of it is left."""
    state, settled = report.history, report.settled
    if state is None or state.history is None or settled is None:
        return {}
    marks = state.mark_candles
    return {
        "candles": state.history.state != "complete",
        "mark candles": marks is None or marks.state != "complete",
        "settled rates": bool(settled.history_pairs),
        "well": report.state != "well",
    }


def tell(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def run(pairs: int, days: int, weight: int, speed: float, minutes: float) -> int:
    """Returns the exit code."""
    options = SimulatorOptions(pairs=pairs, timeframes=TIMEFRAMES, speed=speed)
    with tempfile.TemporaryDirectory(prefix="fleet-") as temporary:
        async with Simulator(options) as sim:
            settings = settings_for(Path(temporary) / "journal.db", sim, pairs, days, weight)
            collector, stop = Collector(settings), asyncio.Event()
            running = asyncio.create_task(collector.run(stop))
            began_ms = sim.now_ms()
            done_min: dict[str, float] = {}
            last: dict[str, bool] = {}
            by_minute: dict[int, int] = {}
            before = sim.rest.weight.total
            while True:
                await asyncio.sleep(LOOK_EVERY_MS / 1000 / speed)
                now_ms = sim.now_ms()
                passed_min = (now_ms - began_ms) / schema.MINUTE_MS
                total = sim.rest.weight.total
                minute = now_ms // schema.MINUTE_MS - began_ms // schema.MINUTE_MS
                by_minute[minute] = by_minute.get(minute, 0) + total - before
                before = total
                last = parts_left(collector.report())
                for name, is_left in last.items():
                    if is_left:
                        done_min.pop(name, None)
                    else:
                        done_min.setdefault(name, passed_min)
                if (last and not any(last.values())) or passed_min > minutes or running.done():
                    break
            most, requests = sim.rest.weight.most_used, dict(sim.rest.requests)
            refused = dict(collector.report().rest.refused)
            stop.set()
            await running
    tell(f"{pairs} pairs, {days} days, weight per minute {weight:,}, speed {speed:g}")
    tell(
        "weight by minute (as looked at): "
        + " ".join(f"{by_minute[n]:,}" for n in sorted(by_minute))
    )
    tell(f"most in any minute, counted by the exchange: {most:,}")
    tell("requests: " + ", ".join(f"{name} {count:,}" for name, count in sorted(requests.items())))
    for name in ("settled rates", "mark candles", "candles", "well"):
        at_min = done_min.get(name)
        tell(f"{name}: " + ("NOT THERE" if at_min is None else f"after {at_min:.1f} min"))
    if refused:
        tell(f"REFUSED: {refused}")
    good = most <= weight and not refused and bool(last) and not any(last.values())
    return 0 if good else 1


def main() -> int:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=164)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--weight", type=int, default=HistorySettings().weight_per_minute)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=40.0, help="of exchange time, at most")
    chosen = parser.parse_args()
    return uvloop.run(run(chosen.pairs, chosen.days, chosen.weight, chosen.speed, chosen.minutes))


if __name__ == "__main__":
    sys.exit(main())
