"""What exchangeInfo lists is believed when it is whole; the top pairs are chosen when there is enough to."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from marketfeed.binance.budget import Budget
from marketfeed.binance.exchange_clock import ExchangeClock
from marketfeed.binance.rest import BinanceRest
from marketfeed.binance.rest_queue import Turns
from marketfeed.binance.symbols import NEVER_MS
from marketfeed.errors import ExchangeError
from marketfeed.journal.batch import Batch
from marketfeed.journal.documents import change_document
from marketfeed.journal.writer import JournalWriter
from marketfeed.pairs.listing import InstrumentSource
from marketfeed.records import CatalogEntry
from marketfeed.settings.model import ExchangeSettings

NOW_MS: Final = 1_790_006_400_000
WAIT_S: Final = 180.0


def contract(base: str, status: str = "TRADING", delivery_ms: int = NEVER_MS) -> dict[str, Any]:
    return {
        "symbol": f"{base}USDT",
        "baseAsset": base,
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "status": status,
        "contractType": "PERPETUAL",
        "onboardDate": 1_600_000_000_000,
        "deliveryDate": delivery_ms,
    }


class Exchange:
    """Answers what is traded and its volumes, as a test sets them, and the time."""

    def __init__(self, contracts: list[dict[str, Any]]) -> None:
        self.contracts = contracts
        self.volumes: dict[str, float] = {}
        self.on_tickers: Callable[[], None] = lambda: None

    async def info(self, _: web.Request) -> web.Response:
        return web.json_response({"symbols": self.contracts})

    async def time(self, _: web.Request) -> web.Response:
        return web.json_response({"serverTime": NOW_MS})

    async def tickers(self, _: web.Request) -> web.Response:
        rows = [{"symbol": name, "quoteVolume": str(at)} for name, at in self.volumes.items()]
        self.on_tickers()
        return web.json_response(rows)


class Line:
    """A source over a journal; `restart` makes another one, as a next start does."""

    def __init__(
        self,
        exchange: Exchange,
        settings: ExchangeSettings,
        rest: BinanceRest,
        writer: JournalWriter,
    ) -> None:
        self.exchange = exchange
        self.writer = writer
        self.clock = ExchangeClock()
        self._settings = settings
        self._rest = rest
        self.source = self.restart()

    def restart(self, pairs: object = None, **exchange: object) -> InstrumentSource:
        if pairs is not None:
            settings = {"pairs": pairs, **exchange}
            self._settings = ExchangeSettings.model_validate(settings)
        self.source = InstrumentSource(self._settings, self._rest, self.clock, self.writer)
        return self.source

    async def ask(self, times: int = 1) -> list[str]:
        for _ in range(times):
            listing = await self.source.load_once()
        return [one.pair for one in listing.selection.instruments]


def run(
    path: Path,
    contracts: list[dict[str, Any]],
    check: Callable[[Line], Awaitable[None]],
    pairs: object = "all",
) -> None:
    async def main() -> None:
        exchange = Exchange(contracts)
        app = web.Application()
        app.router.add_get("/fapi/v1/exchangeInfo", exchange.info)
        app.router.add_get("/fapi/v1/time", exchange.time)
        app.router.add_get("/fapi/v1/ticker/24hr", exchange.tickers)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        settings = ExchangeSettings.model_validate({"pairs": pairs})
        try:
            async with JournalWriter(path) as writer, aiohttp.ClientSession() as session:
                turns = Turns(Budget(100_000), ExchangeClock())
                rest = BinanceRest(session, f"http://{host}:{port}", turns=turns)
                await check(Line(exchange, settings, rest, writer))
        finally:
            await runner.cleanup()

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


# --- contracts that are listed no more --------------------------------------------------------------

TRADING: Final = [contract(f"T{n}") for n in range(53)]


@pytest.mark.parametrize(
    "ended", [("CLOSE", NEVER_MS), ("SETTLING", NOW_MS - 1), ("DELIVERED", NOW_MS - 1)]
)
def test_that_ended_contracts_are_listed_no_more_is_believed(
    path: Path, ended: tuple[str, int]
) -> None:
    async def check(line: Line) -> None:
        assert len(await line.ask()) == 53
        line.exchange.contracts = [*TRADING, contract("NEW")]
        assert len(await line.ask()) == 54
        line.restart()
        assert len(await line.ask()) == 54
        assert line.source.problem == ""

    run(path, [*TRADING, *(contract(f"D{n}", *ended) for n in range(39))], check)


@pytest.mark.parametrize("lost", [0, 15])
def test_what_is_listed_no_more_goes_on_being_collected(path: Path, lost: int) -> None:
    """Named or all, in this run and after a restart; what was never collected is not known."""

    async def check(line: Line) -> None:
        assert len(await line.ask()) == 53
        catalog = [
            CatalogEntry(f"T{n}/USDT:USDT", f"T{n}USDT", ("1m",), NOW_MS, 1, None, NOW_MS)
            for n in range(53)
        ]
        batch = Batch()
        batch.extend(catalog)
        await line.writer.call(lambda journal: journal.write(batch))
        line.exchange.contracts = [*TRADING[lost + 1 :], contract("NEW")]
        line.restart()
        assert len(await line.ask(3)) == 54
        assert line.source.problem == ""
        line.restart(["T0/USDT:USDT", "T1/USDT:USDT", "NEVER/USDT:USDT"])
        assert await line.ask() == ["T0/USDT:USDT", "T1/USDT:USDT"]

    run(path, TRADING, check)


def test_lives_are_kept_over_starts_and_listed_no_more_they_stand(path: Path) -> None:
    async def check(line: Line) -> None:
        line.exchange.contracts = [contract("A"), contract("B", "SETTLING", NOW_MS - 1)]
        assert await line.ask() == ["A/USDT:USDT"]
        assert line.source.book.lives.keys() == {"A/USDT:USDT"}
        kept = await line.writer.call(lambda journal: journal.lives())
        assert kept.keys() == {"A/USDT:USDT"}
        # Its end is noted, and saved, though it is selected no more.
        line.exchange.contracts = [contract("A", "SETTLING", NOW_MS - 5), contract("C")]
        assert await line.ask() == ["C/USDT:USDT"]
        line.restart()
        line.exchange.contracts = [contract("C")]
        assert await line.ask() == ["C/USDT:USDT"]
        kept = await line.writer.call(lambda journal: journal.lives())
        assert [life.ended_ms for life in kept["A/USDT:USDT"]] == [NOW_MS - 5]

    run(path, [], check)


# --- the top pairs ----------------------------------------------------------------------------------

FOUR: Final = ["A", "B", "C", "D"]
VOLUMES: Final = {"AUSDT": 1.0, "BUSDT": 5.0, "CUSDT": 9.0, "DUSDT": 0.0}
TOP: Final = ["C/USDT:USDT", "B/USDT:USDT"]


def named(status: str, *delisted: str) -> list[dict[str, Any]]:
    return [
        *(contract(name, status) for name in FOUR),
        *(contract(name, "SETTLING", NOW_MS - 1) for name in delisted),
    ]


def test_the_top_pairs_are_chosen_once_the_exchange_tells_enough(path: Path) -> None:
    async def check(line: Line) -> None:
        exchange = line.exchange

        def turn() -> None:
            """A maintenance ends: first the contracts trade again, then their volumes are listed."""
            exchange.volumes = VOLUMES if exchange.contracts[0]["status"] == "TRADING" else {}
            exchange.contracts = named("TRADING", "X", "Y", "Z")

        exchange.on_tickers = turn
        async with asyncio.timeout(WAIT_S):
            listing = await line.source.load(asyncio.Event())
        assert listing is not None
        assert [one.pair for one in listing.selection.instruments] == TOP
        assert line.source.problem == ""
        line.restart()
        assert await line.ask() == TOP

    run(path, named("PENDING_TRADING"), check, {"top": 2})


@pytest.mark.parametrize(
    ("contracts", "volumes"),
    [
        (named("BREAK"), VOLUMES),
        ([*named("TRADING")[:2], *named("BREAK")[2:]], VOLUMES),
        (named("TRADING"), {}),
        (named("TRADING"), {"AUSDT": 1.0, "BUSDT": 5.0}),
        (named("TRADING"), dict.fromkeys(VOLUMES, 0.0)),
    ],
    ids=["none trades", "half of them trade", "no ticker", "half of the tickers", "no volume"],
)
def test_too_little_to_choose_by_is_no_choice(
    path: Path, contracts: list[dict[str, Any]], volumes: dict[str, float]
) -> None:
    async def check(line: Line) -> None:
        line.exchange.volumes = volumes
        with pytest.raises(ExchangeError, match="not enough to choose the top pairs by"):
            await line.ask()
        line.exchange.contracts, line.exchange.volumes = named("TRADING"), VOLUMES
        assert await line.ask() == TOP

    run(path, contracts, check, {"top": 2})


def test_where_all_are_taken_no_volume_is_needed(path: Path) -> None:
    async def check(line: Line) -> None:
        assert await line.ask() == [f"{name}/USDT:USDT" for name in FOUR]

    run(path, named("TRADING", "X", "Y"), check, {"top": 4})


def test_no_pairs_that_were_chosen_once_are_chosen_anew(path: Path) -> None:
    """What an earlier version saved when it first started in a maintenance."""

    async def check(line: Line) -> None:
        line.exchange.volumes = VOLUMES
        await line.writer.save_document("chosen_pairs:USDT:2", json.dumps([]).encode(), NOW_MS)
        assert await line.ask() == TOP

    run(path, named("TRADING"), check, {"top": 2})


def test_other_types_are_another_choice(path: Path) -> None:
    gold = contract("XAU") | {"contractType": "TRADIFI_PERPETUAL"}
    volumes = VOLUMES | {"XAUUSDT": 99.0}
    both = ["XAU/USDT:USDT", "C/USDT:USDT"]

    async def check(line: Line) -> None:
        line.exchange.volumes = volumes
        assert await line.ask() == TOP
        line.restart({"top": 2}, contracts=["tradifi", "perpetual"])
        assert await line.ask() == both
        # Each is kept.
        line.exchange.volumes = VOLUMES | {"DUSDT": 999.0}
        assert await line.ask() == both
        line.restart({"top": 2})
        assert await line.ask() == TOP
        kept = await line.writer.load_document("chosen_pairs:USDT:2:perpetual+tradifi")
        assert kept is not None
        assert json.loads(kept[0]) == both
        # What becomes of a contract that was chosen is not this choice's affair.
        line.exchange.contracts[2]["contractType"] = "TRADIFI_PERPETUAL"
        line.restart({"top": 2})
        assert await line.ask() == TOP

    run(path, [*named("TRADING"), gold], check, {"top": 2})


def test_what_is_left_out_by_type_is_counted_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gold = contract("XAU") | {"contractType": "TRADIFI_PERPETUAL"}

    async def check(line: Line) -> None:
        assert len(await line.ask()) == 4
        line.restart(["A/USDT:USDT", "XAU/USDT:USDT"])
        assert await line.ask() == ["A/USDT:USDT"]

    caplog.set_level("INFO")
    run(path, [*named("TRADING"), gold], check)
    assert "1 trading contracts are left out by type: TRADIFI_PERPETUAL 1; exchange" in caplog.text
    assert (
        "configured pair is left out pair=XAU/USDT:USDT reason='its contract type is "
        "TRADIFI_PERPETUAL: exchange.contracts needs tradifi to collect it'"
    ) in caplog.text
    assert "is not traded" not in caplog.text


# --- pairs that are dropped by hand ------------------------------------------------------------------


def test_what_is_taken_out_of_the_kept_choice_is_gone_with_the_next_look(path: Path) -> None:
    async def check(line: Line) -> None:
        line.exchange.volumes = VOLUMES
        assert await line.ask() == TOP
        # As `marketfeed pairs --drop` does beside it.
        body = json.dumps(TOP[:1]).encode()
        assert change_document(path, "chosen_pairs:USDT:2", lambda _: body, NOW_MS)
        # What it writes again when exchangeInfo says something new does not bring it back.
        line.exchange.contracts = named("TRADING", "X")
        assert await line.ask(2) == TOP[:1]
        line.source.on_journal_replaced()
        assert await line.ask(2) == TOP[:1]
        line.restart()
        assert await line.ask() == TOP[:1]

    run(path, named("TRADING"), check, {"top": 2})


def test_a_journal_begun_anew_gets_the_choice_again(path: Path) -> None:
    async def check(line: Line) -> None:
        line.exchange.volumes = VOLUMES
        assert await line.ask() == TOP
        delete = "DELETE FROM document"
        await line.writer.call(lambda journal: journal.db.execute(delete).rowcount)
        line.source.on_journal_replaced()
        assert await line.ask() == TOP
        line.exchange.volumes = {"XUSDT": 9.0}
        line.restart()
        assert await line.ask() == TOP

    run(path, named("TRADING"), check, {"top": 2})
