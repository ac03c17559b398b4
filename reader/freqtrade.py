"""Freqtrade takes its candles from here: opt-in, for Binance USD-M futures.

In a strategy's file:

```python
from reader.freqtrade import install

install()
```

or, with the strategy as it is, `python -m reader.freqtrade trade …` in place of `freqtrade trade …`.

Klines, settled funding rates and hourly mark candles, live and for training, then come from the store
that `MARKETFEED_URL` names; orders, order books and tickers stay with the exchange. What the store does
not hold (a pair or timeframe that is not collected, or that far back) is downloaded as before, or not at
all: `MARKETFEED_MISSING=exchange` or `raise`. A store that is stale or down, or in which nothing is
collected (yet), is never answered for by the exchange: all bots of an address would ask it at once.
Freqtrade's TemporaryError is raised then, the old candles are taken from the bot, and it decides nothing
for these pairs until new ones come. One that keeps silent is waited for 10 s, in the bot's own thread, and
not asked again for another 10 s: the bot has exits to look at.

`MARKETFEED_FREQTRADE=off` leaves Freqtrade as it was.
"""

import asyncio
import functools
import inspect
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Literal, NamedTuple, cast
from weakref import WeakKeyDictionary

from reader.errors import ArgumentError, ReaderError, StaleDataError, StoreUnavailableError
from reader.feeder import KINDS, Download, Feeder, NotStoredError, Row
from reader.reader import MarketReader

log = logging.getLogger("reader.freqtrade")

TESTED: Final = ("2026.9",)
"""The versions of Freqtrade that this was tested with."""

SWITCH: Final = "MARKETFEED_FREQTRADE"
MISSING: Final = "MARKETFEED_MISSING"
Missing = Literal["exchange", "raise"]

TIMEOUT_S: Final = 10.0
"""So long an InfluxDB may keep silent."""
REST_S: Final = 10.0
"""Wall seconds for which a store that kept silent until a time-out is not asked again.

Freqtrade refreshes in chunks of 100 series, one after the other, each of which would wait as long.
"""

_METHOD: Final = "_async_get_candle_history"
_PARAMETERS: Final = ("self", "pair", "timeframe", "candle_type", "since_ms")
_EXCHANGES: Final = frozenset({"binance", "binanceusdm"})

_Answer = tuple[str, str, Any, list[Row], bool]
_Coroutine = Callable[..., Awaitable[_Answer]]


class UnsupportedFreqtradeError(ReaderError):
    """There is no Freqtrade, or one that this was not tested with."""


class _Waiting(NamedTuple):
    download: Download
    answer: "asyncio.Future[list[Row]]"


class Installed:
    """What `install` put in place: `answered` and `refused` count series, `requests` those left over.

    `requests` are downloads that went to the exchange after all, by candle type. A store that kept
    silent is not asked again for `rest_s`.
    """

    def __init__(
        self,
        reader: MarketReader | None,
        missing: Missing,
        *,
        rest_s: float = REST_S,
    ) -> None:
        self.missing: Missing = missing
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._source = "MARKETFEED_URL" if reader is None else str(reader)
        self._feeder = None if reader is None else Feeder(reader)
        # By event loop: Freqtrade may run several exchanges, each with its own loop and thread.
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Waiting]] = (
            WeakKeyDictionary()
        )
        self._logged: set[tuple[str, ...]] = set()
        self._down = False
        self._rest_s = rest_s
        # What is answered until then (monotonic) without asking.
        self._silence = ""
        self._silent_until_s = 0.0

    async def rows(self, download: Download) -> list[Row]:
        """Answer one download, together with all that Freqtrade starts in the same turn of its loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Row]] = loop.create_future()
        waiting = self._waiting.setdefault(loop, [])
        if not waiting:
            loop.call_soon(self._answer, loop)
        waiting.append(_Waiting(download, answer))
        return await answer

    def _answer(self, loop: asyncio.AbstractEventLoop) -> None:
        # In this thread: the loop runs for these downloads alone, and its caller waits for them.
        waiting = self._waiting.pop(loop, [])
        started_s = time.monotonic()
        try:
            answers = self._ask([one.download for one in waiting])
        except Exception as error:
            self._log_down(error)
            answers = [cast("ReaderError", error)] * len(waiting)
        else:
            self._log_up(waiting, time.monotonic() - started_s)
        for one, found in zip(waiting, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(found, Exception):
                one.answer.set_exception(found)
            else:
                self.answered[one.download.kind] += 1
                one.answer.set_result(found)

    def _ask(self, downloads: list[Download]) -> list[list[Row] | ReaderError]:
        if time.monotonic() < self._silent_until_s:
            raise StoreUnavailableError(self._silence)
        try:
            return self._open().answer(downloads)
        except StoreUnavailableError as error:
            if error.silent:
                self._silence = str(error)
                self._silent_until_s = time.monotonic() + self._rest_s
            raise

    def _open(self) -> Feeder:
        if self._feeder is None:
            reader = MarketReader.connect(timeout_s=TIMEOUT_S)
            self._feeder, self._source = Feeder(reader), str(reader)
        return self._feeder

    # --- what is logged of it ---------------------------------------------------------------------

    def warn_once(self, key: tuple[str, ...], text: str) -> None:
        """Warn of something once."""
        if key not in self._logged:
            self._logged.add(key)
            log.warning("%s", text)

    def _log_down(self, error: Exception) -> None:
        if not self._down:
            known = isinstance(error, ReaderError)
            log.error("no candles from the store: %s", error, exc_info=None if known else error)
        self._down = True

    def _log_up(self, waiting: list[_Waiting], took_s: float) -> None:
        if self._down:
            self._down = False
            log.info("the store answers again")
        counts = Counter(f"{one.download.timeframe} {one.download.kind}" for one in waiting)
        text = ", ".join(f"{count} × {name}" for name, count in counts.items())
        first = not set(counts) <= {name for name, *_ in self._logged}
        self._logged.update((name,) for name in counts)
        log.log(
            logging.INFO if first else logging.DEBUG,
            "%s asked of %s, %.0f ms; %d downloads went to the exchange so far",
            text,
            self._source,
            took_s * 1000,
            sum(self.requests.values()),
        )


_installed: Installed | None = None


def install(
    *,
    missing: Missing | None = None,
    reader: MarketReader | None = None,
    any_version: bool = False,
) -> Installed | None:
    """Let this process's Freqtrade take its candles from the store. Safe to call again.

    `missing` (`MARKETFEED_MISSING`, "exchange") decides what becomes of downloads that the store has not
    the data for: "exchange" as before, "raise" not at all. `reader` is one over the default store unless
    given. `any_version` tries it with a version of Freqtrade that it was not tested with, as long as the
    replaced coroutine has the parameters it should have.

    Returns what counts the downloads; None when `MARKETFEED_FREQTRADE=off`.

    Raises UnsupportedFreqtradeError, and ArgumentError for settings that cannot be used. A store that is
    down is no error: the bot waits for it.
    """
    global _installed  # noqa: PLW0603 - Freqtrade is one to a process
    if os.environ.get(SWITCH, "").lower() == "off":
        log.warning("%s=off: candles come from the exchange", SWITCH)
        return None
    chosen = _missing(missing if missing is not None else os.environ.get(MISSING) or "exchange")
    exchange, version = _freqtrade(any_version=any_version)
    if reader is None and _installed is not None:
        # Freqtrade imports a strategy's file several times.
        _installed.missing = chosen
        return _installed
    if reader is None:
        try:
            reader = MarketReader.connect(timeout_s=TIMEOUT_S)
        except StoreUnavailableError as error:
            log.warning("the store is not there yet: %s", error)
    _installed = Installed(reader, chosen)
    original = getattr(exchange, _METHOD)
    setattr(exchange, _METHOD, _replacement(getattr(original, "marketfeed_original", original)))
    log.info(
        "Freqtrade %s takes candles, funding rates and mark prices from %s (missing: %s)",
        version,
        _installed._source,  # noqa: SLF001 - same module
        chosen,
    )
    return _installed


def _missing(text: str) -> Missing:
    if text == "exchange":
        return "exchange"
    if text == "raise":
        return "raise"
    raise ArgumentError(f"{MISSING}: exchange or raise is expected, found {text!r}")


def _freqtrade(*, any_version: bool) -> tuple[type, str]:
    """Return Freqtrade's Exchange class and its version, both looked at."""
    try:
        import freqtrade  # noqa: PLC0415 - whoever imports this module need not have it
        from freqtrade.exchange import Binance, Exchange  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedFreqtradeError(
            f"no Freqtrade can be found in this environment: {error}"
        ) from error
    version = str(freqtrade.__version__)
    if version not in TESTED and not any_version:
        raise UnsupportedFreqtradeError(
            f"Freqtrade {version} is installed; reader.freqtrade was tested with {', '.join(TESTED)}. "
            "install(any_version=True) tries it; without install() candles come from the exchange"
        )
    method = inspect.getattr_static(Exchange, _METHOD, None)
    if method is None or _METHOD in vars(Binance):
        raise _changed(version, "is not where it was")
    inner = inspect.unwrap(getattr(method, "marketfeed_original", method))
    # Freqtrade's retrying wrapper hides what it wraps.
    inner = inspect.getclosurevars(inner).nonlocals.get("f", inner)
    if not inspect.iscoroutinefunction(inner):
        raise _changed(version, "is no coroutine")
    parameters = tuple(inspect.signature(inner).parameters)
    if parameters != _PARAMETERS:
        raise _changed(version, f"takes ({', '.join(parameters)})")
    return Exchange, version


def _changed(version: str, how: str) -> UnsupportedFreqtradeError:
    return UnsupportedFreqtradeError(
        f"Freqtrade {version}: Exchange.{_METHOD} {how}; ({', '.join(_PARAMETERS)}) is expected. "
        "Without install() candles come from the exchange"
    )


def _replacement(original: _Coroutine) -> Callable[..., Coroutine[Any, Any, _Answer]]:
    @functools.wraps(original)
    async def candle_history(
        self: Any, pair: str, timeframe: str, candle_type: Any, since_ms: int | None = None
    ) -> _Answer:
        # Without Freqtrade's retries: a store that is stale now is so in a millisecond, too.
        kind = str(getattr(candle_type, "value", candle_type))
        if _installed is None or kind not in KINDS or not _serves(self, _installed):
            return await original(self, pair, timeframe, candle_type, since_ms)
        download = Download(
            pair,
            timeframe,
            kind,
            since_ms,
            self.ohlcv_candle_limit(timeframe, candle_type=candle_type, since_ms=since_ms),
            _listed_ms(self, pair),
        )
        try:
            rows = await _installed.rows(download)
        except NotStoredError as error:
            _installed.warn_once((pair, timeframe, kind), f"not in the store: {error}")
            if _installed.missing == "exchange":
                _installed.requests[kind] += 1
                return await original(self, pair, timeframe, candle_type, since_ms)
            raise _withheld(self, download, candle_type, _installed, error) from error
        except Exception as error:
            raise _withheld(self, download, candle_type, _installed, error) from error
        drop_incomplete: bool = self._drop_incomplete_candle(candle_type)
        return pair, timeframe, candle_type, rows, drop_incomplete

    vars(candle_history)["marketfeed_original"] = original
    return candle_history


def _serves(exchange: Any, installed: Installed) -> bool:
    """Whether this exchange's candles are those that are stored; sees to its settings."""
    if exchange.id not in _EXCHANGES:
        installed.warn_once(
            (exchange.id,),
            f"candles of {exchange.id} stay with it: Binance USD-M futures are stored",
        )
        return False
    settings = exchange._config["exchange"]  # noqa: SLF001 - as the method that is replaced
    # Freqtrade acts on signals of candles that closed a timeframe and 5 minutes ago. 0 is one timeframe:
    # the moment at which the next candle is due and has not come.
    settings["outdated_offset"] = 0
    if not settings.get("only_from_ccxt"):
        installed.warn_once(
            ("only_from_ccxt",),
            "exchange.only_from_ccxt is not true: training data would come from the public archive",
        )
    return True


def _withheld(
    exchange: Any, download: Download, candle_type: Any, installed: Installed, error: Exception
) -> Exception:
    """Take the old candles from the bot, and return the error for Freqtrade.

    Without it a strategy would mix the stale candles of one timeframe with fresh ones of another.
    """
    from freqtrade.exceptions import TemporaryError  # noqa: PLC0415

    installed.refused[download.kind] += 1
    if download.since_ms is None:
        key = (download.pair, download.timeframe, candle_type)
        exchange._klines.pop(key, None)  # noqa: SLF001 - as the method that is replaced
    what = "stale" if isinstance(error, StaleDataError) else "not available"
    return cast("Exception", TemporaryError(f"candles are {what}: {error}"))


def _listed_ms(exchange: Any, pair: str) -> int | None:
    created = exchange.markets.get(pair, {}).get("created")
    return int(created) if created else None


def main() -> None:
    """Run Freqtrade's own command line with `install()` before it."""
    from freqtrade.main import main as freqtrade_main  # noqa: PLC0415

    try:
        # This file runs as __main__: what Freqtrade's strategies import is the module by its name.
        from reader.freqtrade import install as install_here  # noqa: PLC0415

        install_here()
    except ReaderError as error:
        sys.exit(f"reader.freqtrade: {error}")
    freqtrade_main()


if __name__ == "__main__":
    main()
