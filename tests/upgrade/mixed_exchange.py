"""The exchange of `mixed_collectors`, as a process of its own: `python -m tests.upgrade.mixed_exchange PLAN`.

PLAN is a `Plan` as JSON. It says where it listens as `marketfeed simulate` does, and does what is planned.
"""

import asyncio
import logging
import signal
import sys
from typing import Final

import msgspec
import uvloop

from marketfeed.schema import MINUTE_MS
from marketfeed.simulator.listings import Delist, Enlist, ListingChange
from marketfeed.simulator.server import Simulator, SimulatorOptions
from tests.upgrade import mixed_plan
from tests.upgrade.mixed_plan import ANNOUNCED_MS, Plan

MODULE: Final = "tests.upgrade.mixed_exchange"
SEED: Final = 18

log = logging.getLogger(__name__)


def changes(plan: Plan) -> list[tuple[int, ListingChange]]:
    """What is listed and delisted, each with when it takes effect (ms), the first first."""
    return [
        (plan.reused_end_ms, Delist(mixed_plan.REUSED)),
        (plan.ending_ms, Delist(mixed_plan.ENDING)),
        (plan.again_ms, Enlist(mixed_plan.REUSED, price=mixed_plan.AGAIN_PRICE)),
    ]


async def happen(sim: Simulator, plan: Plan) -> None:
    """Announce each change so long before that collectors hear of it in time."""
    for at_ms, change in changes(plan):
        # A symbol is announced again once its first contract's last candle was sent: no frame comes after.
        again = isinstance(change, Enlist)
        from_ms = plan.reused_end_ms + MINUTE_MS if again else 0
        while sim.now_ms() < max(from_ms, at_ms - ANNOUNCED_MS):
            await asyncio.sleep(0.05)
        # It is rounded up to a minute, by the time that the market has been brought to meanwhile.
        in_s = (at_ms - sim.now_ms()) / 1000 - 45.0
        done_ms = sim.change(msgspec.structs.replace(change, in_s=in_s))
        if done_ms != at_ms:
            raise RuntimeError(f"{change} takes effect at {done_ms}, not {at_ms}: too late")
        log.info("planned at_ms=%d change=%s", at_ms, change)


async def serve(plan: Plan) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    options = SimulatorOptions(
        pairs=mixed_plan.PAIRS,
        timeframes=mixed_plan.TIMEFRAMES,
        speed=plan.speed,
        start_ms=plan.start_ms,
        seed=SEED,
    )
    async with Simulator(options) as sim:
        funding = {one.pair: sim.market.funding[one.symbol] for one in sim.market.instruments}
        for pair, one in funding.items():
            one.change_rhythm(0, 1 if pair == mixed_plan.HOURLY else 8)
        funding[mixed_plan.SPECIAL].settle_specially(plan.special_ms, mixed_plan.LONE_RATE)
        funding[mixed_plan.BOTH].settle_specially(plan.full_ms, mixed_plan.BOTH_RATE)
        log.info("simulator listening ws_url=%s rest_url=%s", sim.ws_url, sim.rest_url)
        happening = asyncio.create_task(happen(sim, plan))
        stopping = asyncio.create_task(stop.wait())
        # What was planned and cannot be done ends it all.
        await asyncio.wait((happening, stopping), return_when=asyncio.FIRST_EXCEPTION)
        if happening.done():
            happening.result()
        happening.cancel()


if __name__ == "__main__":
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="level=%(levelname)s logger=%(name)s %(message)s",
    )
    uvloop.run(serve(msgspec.json.decode(sys.argv[1], type=Plan)))
