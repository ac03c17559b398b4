"""The commands that need no exchange: the demo and the simulator."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from marketfeed.commands.options import (
    JsonOption,
    log,
    read_timeframes,
    run_until_signal,
    show_and_exit,
)
from marketfeed.service.logs import log_to_stderr


def demo(
    pairs: Annotated[int, typer.Option(min=1, max=600, help="How many pairs.")] = 164,
    speed: Annotated[
        float, typer.Option(min=0.1, max=1000, help="Exchange seconds per second.")
    ] = 60.0,
    seconds: Annotated[float, typer.Option(min=1, help="How long to stream.")] = 30.0,
    timeframes: Annotated[str, typer.Option(help="Comma-separated.")] = "1m,3m",
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep journal and settings in this directory.", show_default=False),
    ] = None,
    influx: Annotated[
        str | None,
        typer.Option(
            help="Ship into this InfluxDB, too, and compare it; api, org, bucket and token come from "
            "MARKETFEED_INFLUXDB__… variables. Its bucket should be an empty one.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the whole line at work, with nothing else at hand.

    Starts a simulated Binance with many pairs, the real collector against it, and reads everything back;
    ends with a comparison of every stored candle with the exchange's own, however it came. Exit 1 if one is
    missing or wrong. On a machine that is too busy for the speed it slows the exchange down, and says so.
    """
    from marketfeed.commands.demo import run_demo
    from marketfeed.commands.demo_report import DemoOptions
    from marketfeed.commands.render import stages
    from marketfeed.commands.render_demo import demo_tables

    options = DemoOptions(pairs, read_timeframes(timeframes), seconds, speed, keep, influx)
    with stages(quiet=as_json) as progress:
        result = uvloop.run(run_demo(options, progress))
    show_and_exit(
        result.report, lambda: demo_tables(result), as_json=as_json, good=result.report.good
    )


def simulate(
    pairs: Annotated[int, typer.Option(min=1, max=600, help="How many pairs.")] = 164,
    speed: Annotated[
        float, typer.Option(min=0.1, max=1000, help="Exchange seconds per second.")
    ] = 1.0,
    timeframes: Annotated[str, typer.Option(help="Comma-separated.")] = "1m,3m,5m,15m,1h",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 9443,
    seed: Annotated[int, typer.Option(help="Another seed, other markets.")] = 1,
    tls: Annotated[bool, typer.Option("--tls", help="wss and https, self-signed.")] = False,
    tradifi: Annotated[
        str,
        typer.Option(
            help="TradFi contracts that trade beside them, comma-separated, such as XAU/USDT:USDT.",
            show_default=False,
        ),
    ] = "",
    replay: Annotated[
        Path | None,
        typer.Option(help="Replay a recorded file instead of making markets.", show_default=False),
    ] = None,
) -> None:
    """Run a Binance USD-M futures exchange on loopback until Ctrl-C.

    Point a collector at it: exchange.ws_url and exchange.rest_url as printed, and exchange.archive_url with
    exchange.archive: true.
    """
    from marketfeed.simulator.server import Simulator, SimulatorOptions

    log_to_stderr()
    options = SimulatorOptions(
        host=host,
        port=port,
        pairs=pairs,
        speed=speed,
        timeframes=read_timeframes(timeframes),
        seed=seed,
        tls=tls,
        tradifi=tuple(filter(None, tradifi.split(","))),
        replay=replay,
    )

    async def serve(stop: asyncio.Event) -> None:
        async with Simulator(options) as simulator:
            log.info(
                "simulator listening ws_url=%s rest_url=%s archive_url=%s",
                simulator.ws_url,
                simulator.rest_url,
                simulator.rest_url,
            )
            await stop.wait()

    run_until_signal(serve)
