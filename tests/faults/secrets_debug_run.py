"""`marketfeed run` with every logger at DEBUG, and asyncio's own debugging switched on."""

import asyncio
import logging
import signal
import sys
import warnings
from pathlib import Path

from marketfeed.collector.collector import Collector
from marketfeed.settings.load import load_settings


async def run(config: Path) -> None:
    """Collect until SIGTERM."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    settings = load_settings(config)
    logging.getLogger("settings").debug("%r %s %r", settings, settings, settings.model_dump())
    await Collector(settings).run(stop)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    warnings.simplefilter("always")
    asyncio.run(run(Path(sys.argv[1])))
