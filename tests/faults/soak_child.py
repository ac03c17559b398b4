"""The processes of a soak with what no setting and no option of the commands offers.

`python -m tests.faults.soak_child collect CONFIG ROLL_FROM_S ROLL_BEFORE_S` is `marketfeed run` with
connections that are old after so many exchange seconds instead of a day. `… simulate PAIRS SPEED TIMEFRAMES
SEED` is `marketfeed simulate` whose quiet pairs send no closing frame for an interval without trades. `…
simulate_from START_MS PAIRS TIMEFRAMES` is one in real time that begins at that exchange time, `…
simulate_quiet START_MS PAIR,… TIMEFRAMES SPEED SEED LIVELINESS` a fast one with few trades.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import uvloop

from marketfeed.binance.rollover import Ages
from marketfeed.collector.collector import Collector
from marketfeed.settings.load import load_settings
from marketfeed.simulator.server import Simulator, SimulatorOptions

MODULE: Final = "tests.faults.soak_child"
_NEVER_S: Final = 1e9

log = logging.getLogger(__name__)


def _collect(config: str, roll_from_s: str, roll_before_s: str) -> None:
    ages = Ages(roll_from_s=float(roll_from_s), roll_before_s=float(roll_before_s), hard_s=_NEVER_S)
    _run_until_signal(Collector(load_settings(Path(config)), ages=ages).run)


def _simulate(pairs: str, speed: str, timeframes: str, seed: str) -> None:
    _serve(
        SimulatorOptions(
            pairs=int(pairs),
            speed=float(speed),
            timeframes=tuple(timeframes.split(",")),
            seed=int(seed),
            empty_closes=False,
        )
    )


def _simulate_from(start_ms: str, pairs: str, timeframes: str) -> None:
    _serve(
        SimulatorOptions(
            pairs=int(pairs), timeframes=tuple(timeframes.split(",")), start_ms=int(start_ms)
        )
    )


def _simulate_quiet(
    start_ms: str, pairs: str, timeframes: str, speed: str, seed: str, liveliness: str
) -> None:
    _serve(
        SimulatorOptions(
            pairs=tuple(pairs.split(",")),
            timeframes=tuple(timeframes.split(",")),
            speed=float(speed),
            seed=int(seed),
            start_ms=int(start_ms),
            liveliness=float(liveliness),
        )
    )


def _serve(options: SimulatorOptions) -> None:
    async def serve(stop: asyncio.Event) -> None:
        async with Simulator(options) as simulator:
            log.info(
                "simulator listening ws_url=%s rest_url=%s", simulator.ws_url, simulator.rest_url
            )
            await stop.wait()

    _run_until_signal(serve)


def _run_until_signal(serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    async def with_signals() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await serve(stop)

    uvloop.run(with_signals())


if __name__ == "__main__":
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="level=%(levelname)s logger=%(name)s %(message)s",
    )
    commands = {
        "collect": _collect,
        "simulate": _simulate,
        "simulate_from": _simulate_from,
        "simulate_quiet": _simulate_quiet,
    }
    commands[sys.argv[1]](*sys.argv[2:])
