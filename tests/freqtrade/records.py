"""Bots' records against real Freqtrades: three bots with closed trades, kills, deletions, a new database.

The trades are made by Freqtrade's own model, in the databases that the bots then run on: closed as it closes
them. Ends well when `marketfeed bots verify` says equal, which reads every bot anew over its REST API.
"""

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import aiohttp

from marketfeed.bots.verify import Verified, verify
from marketfeed.settings.load import describe
from marketfeed.settings.model import Settings
from tests.freqtrade.command import Figures, Progress, arguments, require, run
from tests.freqtrade.harness_config import PASSWORD, USER
from tests.freqtrade.stage import RealBot, _end, _exchange, freqtrade_python, running

BOTS: Final = ("BOT1", "BOT2", "BOT3")
EQUAL_S: Final = 240.0
_FILL: Final = """
import random, sys
from datetime import UTC, datetime, timedelta
from freqtrade.enums import TradingMode
from freqtrade.persistence import Order, Trade, init_db

path, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
init_db(f"sqlite:///{path}")
begun = datetime.now(UTC) - timedelta(days=40 - seed % 7)
for number in range(count):
    short, leverage, opened = bool(draw.randrange(2)), draw.choice((1.0, 3.0, 5.0)), draw.uniform(90, 110)
    closed = opened * (1 + draw.uniform(-0.02, 0.02))
    began = begun + timedelta(minutes=number, microseconds=draw.randrange(10**6))
    # Some close at once, some late.
    ended = began + timedelta(minutes=draw.choice((9, 10, 159, 20_000)))
    amount = round(50 * leverage / opened, 6)
    trade = Trade(
        pair="ETH/USDT:USDT", base_currency="ETH", stake_currency="USDT", stake_amount=50.0,
        max_stake_amount=50.0, amount=amount, amount_requested=amount, open_rate=opened,
        open_rate_requested=opened, open_date=began, fee_open=0.0005, fee_close=0.0005,
        exchange="binance", is_open=True, leverage=leverage, is_short=short,
        trading_mode=TradingMode.FUTURES, interest_rate=0.0, strategy="Seen", timeframe=1,
        enter_tag=f"{'short' if short else 'long'} ensemble 3/5 conf=0.82 from=79",
        amount_precision=3, price_precision=2, precision_mode=2, precision_mode_price=2, contract_size=1.0,
    )
    entry, leave = ("sell", "buy") if short else ("buy", "sell")
    for place, (side, rate, when) in enumerate(((entry, opened, began), (leave, closed, ended))):
        trade.orders.append(Order(
            order_id=f"{seed}-{number}-{place}", ft_order_side=side, ft_pair=trade.pair, ft_amount=amount,
            ft_price=rate, ft_is_open=False, status="closed", symbol=trade.pair, order_type="market",
            side=side, price=rate, average=rate, amount=amount, filled=amount, remaining=0.0,
            cost=amount * rate, order_date=when, order_filled_date=when,
        ))
    trade.recalc_open_trade_value()
    trade.min_rate, trade.max_rate = min(opened, closed) * 0.99, max(opened, closed) * 1.01
    trade.set_funding_fees(draw.uniform(-0.05, 0.05))
    Trade.session.add(trade)
    trade.exit_reason = "roi"
    trade.close(closed)
    trade.close_date = ended
    if number % 10 == 0:
        Trade.commit()
        trade.set_custom_data("marketfeed_exits", {"stop": -0.0148, "target": 0.01, "source": "bin"})
Trade.commit()
"""


def fill(database: Path, count: int, seed: int) -> None:
    """Make a database of closed trades, as Freqtrade's own model closes them."""
    database.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [freqtrade_python(), "-I", "-c", _FILL, str(database), str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 0, f"no database: {done.stderr[-500:]}")


def settings_of(home: Path, bots: dict[str, RealBot]) -> Settings:
    password = home / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    fleet = {
        name: {
            "url": bot.url.removesuffix("/api/v1"),
            "username": USER,
            "password_file": str(password),
        }
        for name, bot in bots.items()
    }
    return Settings.model_validate(
        {
            "aggregator": {"ledger": {"path": str(home / "ledger.db")}},
            "bots": {
                "books": {"path": str(home / "books.db")},
                "fleet": fleet,
                "poll": "1s",
                "status": {"port": 0},
            },
        }
    )


def config_of(home: Path, settings: Settings) -> Path:
    import yaml  # noqa: PLC0415

    wanted: dict[str, Any] = {"bots": describe(settings)["bots"]}
    del wanted["bots"]["status"]["token"]
    wanted["aggregator"] = {"ledger": {"path": str(home / "ledger.db")}}
    file = home / "config.yaml"
    file.write_text(yaml.safe_dump(wanted))
    return file


async def equal(settings: Settings, session: aiohttp.ClientSession) -> list[Verified]:
    """Wait until everything is equal; what was compared then."""
    found: list[Verified] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EQUAL_S):
            while not found or not all(one.equal for one in found):
                found = await verify(settings, session, 0.0)
                await asyncio.sleep(0.5)
    for one in found:
        require(one.equal, f"{one.bot}: {one.differences[:3]}")
    return found


async def prove(
    given: argparse.Namespace, home: Path, progress: Progress
) -> tuple[Figures, list[str]]:
    """Run it."""
    draw = random.Random(given.seed)
    with contextlib.ExitStack() as stack:
        rest_url = stack.enter_context(_exchange(home, "real"))
        bots: dict[str, RealBot] = {}
        for number, name in enumerate(BOTS):
            place = home / name
            await asyncio.to_thread(fill, place / "trades.sqlite", given.trades, number + 1)
            bots[name] = RealBot(freqtrade_python(), place, rest_url, max_open=5)
            stack.callback(_end, bots[name])
            bots[name].start()
        for bot in bots.values():
            await running(bot)
        progress("three bots run")
        settings = settings_of(home, bots)
        config = config_of(home, settings)

        async def started() -> asyncio.subprocess.Process:
            command = (sys.executable, "-m", "marketfeed", "bots", "run", "--config", str(config))
            return await asyncio.create_subprocess_exec(
                *command, stderr=(home / "bots.log").open("ab")
            )

        async with aiohttp.ClientSession() as session:
            deleted = 0
            for _ in range(given.kills):
                service = await started()
                await asyncio.sleep(draw.uniform(0.5, 4.0))
                service.kill()
                await service.wait()
                answer = await asyncio.to_thread(
                    bots["BOT1"].api, "DELETE", f"trades/{draw.randrange(1, given.trades)}"
                )
                deleted += answer.status == 200
            service = await started()
            try:
                first = await equal(settings, session)
                progress(f"equal after {given.kills} kills: {[one.in_books for one in first]}")
                bots["BOT2"].kill()
                for file in (home / "BOT2").glob("trades.sqlite*"):
                    file.unlink()
                await asyncio.to_thread(fill, home / "BOT2" / "trades.sqlite", 150, 77)
                bots["BOT2"].start()
                await running(bots["BOT2"])
                last = await equal(settings, session)
                progress("equal with another database")
            finally:
                service.terminate()
                await service.wait()
    before = last[1].before
    require(before == given.trades, f"of the database before {before} of {given.trades} stayed")
    figures = (
        ("bots", len(bots)),
        ("trades in the bots", sum(one.in_bot for one in last)),
        ("trades in the books", sum(one.in_books for one in last)),
        ("kept of the database before", before),
        ("kills of the service", given.kills),
        ("trades deleted in a bot", deleted),
    )
    return figures, []


if __name__ == "__main__":
    sys.exit(
        run(
            prove,
            arguments(
                "records",
                __doc__,
                trades={"type": int, "default": 200, "help": "closed trades of each bot"},
                kills={"type": int, "default": 10, "help": "kills of the service"},
            ),
            "Bots' records",
        )
    )
