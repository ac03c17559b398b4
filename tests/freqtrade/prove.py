"""What a real Freqtrade shows of `reader.freqtrade`, and of the aggregator in front of it.

`python tests/freqtrade/prove.py [wheel] [ensemble] [live] [outage] [refresh] [freqai] [backtest] [examples]
[burst] [conflicts] [recovery] [health] [ledgers] [meta] [kills]`: without a name all but the last, which
takes an hour. Bots run the wheel of `make dist`, installed beside Freqtrade; what that changes is shown
first. Those from `examples` on are commands of their own (`python -m tests.freqtrade.burst --help`), with
Freqtrade alone.

Too long for CI: Freqtrade goes by the wall clock, so ten candles are ten minutes. Ends with the figures,
and with exit code 1 if something is not as it should be.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import training
from ensemble import ensemble
from harness import (
    BY_MODULE,
    ROOT,
    Bot,
    Line,
    environment,
    exchange,
    feeder_line,
    get,
    past_rows,
)
from influxd import Influxd
from installation import Wheel, install_wheel
from training import of

PAIRS: Final = 20
MINUTE_MS: Final = 60_000
FORWARDS: Final = (
    "examples",
    "burst",
    "conflicts",
    "recovery",
    "health",
    "ledgers",
    "meta",
    "kills",
)
"""Proofs of the aggregator, as commands of their own; the last is long."""


class Unexpected(Exception):  # noqa: N818 - a finding
    """Something is not as it should be."""


def require(good: object, text: str) -> None:
    if not good:
        raise Unexpected(text)


def seen_after_s(bot: Bot, skip: int = 1) -> list[float]:
    """For each candle but the first ones: seconds after its close at which the last pair had it."""
    first: dict[tuple[int, str], float] = {}
    for frame in bot.frames():
        # A bot that is started again is shown its newest candle again.
        first.setdefault((frame["newest_ms"], frame["pair"]), frame["at_ms"])
    last: dict[int, float] = {}
    for (newest_ms, _), at_ms in first.items():
        last[newest_ms] = max(at_ms, last.get(newest_ms, 0.0))
    return [(at_ms - ms - MINUTE_MS) / 1000 for ms, at_ms in sorted(last.items())[skip:]]


def check_frames(bot: Bot, rest_url: str) -> tuple[int, int]:
    """Compare every frame that the strategy saw with the exchange's candles; return frames and rows."""
    rows = 0
    truth: dict[str, dict[int, list[float]]] = {}
    frames = bot.frames()
    for frame in frames:
        values = np.load(bot.directory / frame["file"])
        pair = frame["pair"]
        if pair not in truth:
            since_ms = int(
                min(np.load(bot.directory / f["file"])[0, 0] for f in frames if f["pair"] == pair)
            )
            truth[pair] = {
                row[0]: [float(text) for text in row[1:6]]
                for row in past_rows(rest_url, pair, "1m", since_ms)
            }
        times = values[:, 0].astype(int)
        require((np.diff(times) == MINUTE_MS).all(), f"{pair}: a hole in {frame['file']}")
        expected = np.array([truth[pair][ms] for ms in times.tolist()])
        require((values[:, 1:] == expected).all(), f"{pair}: {frame['file']} is not the exchange's")
        rows += len(values)
    return len(frames), rows


def check_decisions(bot: Bot) -> float:
    """Every decision was made on the newest candle there can be; return the greatest age in s."""
    decisions = bot.decisions()
    require(decisions, "no decision was made")
    ages_s = [(d["at_ms"] - d["newest_ms"] - MINUTE_MS) / 1000 for d in decisions]
    # One that is begun just before a close ends a moment after it.
    late = [age_s for age_s in ages_s if age_s > 61.5]
    require(not late, f"decisions on candles that closed {late[:5]} s ago")
    return max(ages_s)


def show(title: str, rows: Sequence[tuple[object, ...]]) -> None:
    _print(f"\n{title}")
    for row in rows:
        _print("  " + "".join(f"{column!s:<40}" for column in row))


def _print(text: str) -> None:
    sys.stdout.write(text.rstrip() + "\n")
    sys.stdout.flush()


# --- the wheel ------------------------------------------------------------------------------------


def check_wheel(wheel: Wheel) -> None:
    """The wheel came beside Freqtrade without changing a version that Freqtrade had."""
    freqtrade = f"Freqtrade {wheel.before['freqtrade']}, {len(wheel.before)} packages"
    show(
        f"wheel: {wheel.file.name} beside {freqtrade}",
        [
            ("packages changed", ", ".join(wheel.changed) or "none"),
            ("packages added", ", ".join(wheel.added)),
            ("pip check, without the wheel", wheel.check_before),
            ("pip check, with it", wheel.check),
            ("of the collector, after import reader", ", ".join(wheel.loaded) or "none"),
            ("reader.freqtrade.install()", "in place" if wheel.seam else "not in place"),
        ],
    )
    require(not wheel.changed, f"packages changed: {wheel.changed}")
    require(wheel.check == wheel.check_before, f"pip check: {wheel.check}")
    require(not wheel.loaded, f"import reader imports {wheel.loaded}")
    require(wheel.seam, "install() has replaced nothing")
    home = wheel.python.parents[1]
    require(Path(wheel.reader).is_relative_to(home), f"reader is {wheel.reader}")


# --- live -----------------------------------------------------------------------------------------


def live(python: Path, directory: Path, candles: int) -> None:
    """Two bots side by side in the same market: one as it is, one on the store."""
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(feeder_line(directory / "line", PAIRS, timeframes=("1m", "15m")))
        plain = stack.enter_context(_second_exchange(directory))
        env = {"SEEN_ENTERS": "1", "SEEN_INFORMATIVE": "1"}
        before = Counter(line.requests())
        without = stack.enter_context(
            Bot(python, directory / "without", plain.rest_url, line.pairs, env=env)
        )
        env |= {"MARKETFEED_URL": line.reader_url, "MARKETFEED_MISSING": "raise"}
        with_it = stack.enter_context(
            Bot(
                python,
                directory / "with",
                line.exchange.rest_url,
                line.pairs,
                env=env,
                api=True,
                command=BY_MODULE,
            )
        )
        for bot in (without, with_it):
            bot.wait_candles(candles + 1, PAIRS, (candles + 4) * 60.0)
        # A trade that is open while Freqtrade starts: it works out funding fees at once.
        pair = line.pairs[3]
        entered = with_it.api(
            "POST", "forceenter", {"pair": pair, "side": "long", "entry_tag": "t"}
        )
        require(entered.status == 200, str(entered))
        with_it.stop()
        with_it.start()
        with_it.wait_log(r"Bot heartbeat\. .*state='RUNNING'", count=_heartbeats(with_it) + 1)
        require("Could not update funding fees" not in with_it.log, "no funding fees")
        asked = Counter(line.requests()) - before
        usual = Counter(get(plain.rest_url + "/simulator/state").json["requests"])
        require(not any(of(asked).values()), f"requests with install(): {of(asked)}")
        require(all(of(usual).values()), f"without: {of(usual)}")
        unknown = [name for name in {**asked, **usual} if name.startswith("/")]
        require(not unknown, f"the simulator does not have {unknown}")
        frames, rows = check_frames(with_it, line.exchange.rest_url)
        dtypes = {json.dumps(f["dtypes"]) for bot in (with_it, without) for f in bot.frames()}
        require(len(dtypes) == 1, f"dtypes differ: {dtypes}")
        kinds = {
            json.dumps({name: seen[2] for name, seen in f["more"].items()})
            for bot in (with_it, without)
            for f in bot.frames()
        }
        require(len(kinds) == 1, f"dtypes of other candles differ: {kinds}")
        oldest_s = check_decisions(with_it)
        ours, theirs = seen_after_s(with_it)[:candles], seen_after_s(without)[:candles]
        show(
            f"live: {PAIRS} pairs, start and {candles} candles of 1m, 15m, funding rates, mark prices",
            [
                ("", "without install()", "with install()"),
                *((name, usual[name], asked[name]) for name in sorted({*usual, *asked})),
                ("frames compared with the exchange", "", f"{frames} ({rows} rows), all equal"),
                ("last pair seen after close, median", *map(_median, (theirs, ours))),
                ("… at most", *(f"{max(each):.2f} s" for each in (theirs, ours))),
                ("oldest candle decided on", "", f"closed {oldest_s:.1f} s ago"),
            ],
        )


def _heartbeats(bot: Bot) -> int:
    return bot.log.count("Bot heartbeat")


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} s"


def _second_exchange(directory: Path) -> Any:
    (directory / "plain").mkdir()
    return exchange(directory / "plain", PAIRS, 1.0, "1m,3m,5m,15m,1h")


# --- an outage of the store -----------------------------------------------------------------------


def outage(python: Path, directory: Path, seconds: float) -> None:
    """InfluxDB is gone for more than a candle, then hangs for as long; the bot goes on afterwards."""
    with Influxd(directory / "influxd") as influxd, influxd.database("market_data"):
        influx = {"url": influxd.url, "api": "v1", "bucket": "market_data"}
        with feeder_line(
            directory / "line", PAIRS, timeframes=("1m",), candles=520, influxdb=influx
        ) as line:
            _wait_shipped(line)
            env = {"SEEN_ENTERS": "1", "MARKETFEED_URL": influxd.url, "MARKETFEED_MISSING": "raise"}
            before = Counter(line.requests())
            with Bot(
                python,
                directory / "bot",
                line.exchange.rest_url,
                line.pairs,
                env=env,
                command=BY_MODULE,
            ) as bot:
                bot.wait_candles(2, PAIRS, 240)
                outages = []
                for stop, start in ((influxd.stop, influxd.start), (influxd.pause, influxd.resume)):
                    began_ms = time.time() * 1000
                    stop()
                    time.sleep(seconds)
                    start()
                    ended_ms = time.time() * 1000
                    known = len({f["newest_ms"] for f in bot.frames()})
                    bot.wait_candles(known + 2, PAIRS, 300)
                    outages.append((began_ms, ended_ms))
                # Each outage once, and its end: refused connections, then the time-out of one that hangs.
                for text in ("no candles from the store", "the store answers again"):
                    require(bot.log.count(text) == 2, f"logged {bot.log.count(text)} times: {text}")
                asked = Counter(line.requests()) - before
                require(not any(of(asked).values()), f"requests: {of(asked)}")
                oldest_s = check_decisions(bot)
                within = [sum(a <= d["at_ms"] <= b for d in bot.decisions()) for a, b in outages]
                frames, rows = check_frames(bot, line.exchange.rest_url)
                show(
                    f"outage: InfluxDB stopped for {seconds:.0f} s, then hung for as long; {PAIRS} pairs",
                    [
                        ("klines, fundingRate, markPriceKlines", of(asked)),
                        ("decisions, during the outages", f"{len(bot.decisions())}, {within}"),
                        ("oldest candle decided on", f"closed {oldest_s:.1f} s before"),
                        ("frames compared with the exchange", f"{frames} ({rows} rows), all equal"),
                        ("skipped for outdated history", bot.log.count("Outdated history")),
                        (
                            "log: no candles from the store",
                            bot.log.count("no candles from the store"),
                        ),
                        ("log: the store answers again", bot.log.count("the store answers again")),
                    ],
                )


def _wait_shipped(line: Line) -> None:
    deadline_s = time.monotonic() + 120
    while line.collector.status().get("influxdb", {}).get("rows_to_go", 0):
        require(time.monotonic() < deadline_s, "nothing is shipped")
        time.sleep(0.5)


# --- how long a refresh takes ---------------------------------------------------------------------


def refresh(python: Path, directory: Path, rounds: int) -> None:
    """All pairs of a candle, downloaded and read: in Freqtrade's own process and code."""
    pairs = 164
    with Influxd(directory / "influxd") as influxd, influxd.database("market_data"):
        influx = {"url": influxd.url, "api": "v1", "bucket": "market_data"}
        with feeder_line(
            directory / "line",
            pairs,
            timeframes=("1m",),
            candles=520,
            mark_hours=0,
            influxdb=influx,
        ) as line:
            _wait_shipped(line)
            urls = {"journal": line.reader_url, "InfluxDB": influxd.url}
            found: dict[str, list[float]] = {}
            cpu_s: dict[str, float] = {}
            ways = (
                ("default", "", 1),
                ("unthrottled", "", 0),
                ("journal", urls["journal"], 1),
                ("InfluxDB", urls["InfluxDB"], 1),
            )
            for name, url, limited in ways:
                time.sleep(60 - time.time() % 60 + 8)  # a fresh minute of weight, and no close soon
                done = subprocess.run(
                    [
                        python, Path(__file__).parent / "refresh.py",
                        line.exchange.rest_url, str(rounds), str(limited), *line.pairs,
                    ],
                    env=environment(PYTHONPATH="", HOME=str(directory), MARKETFEED_URL=url),
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                require(done.returncode == 0, done.stderr[-3000:])
                wall, cpu = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
                found[name], cpu_s[name] = list(wall), statistics.median(cpu[1:])
            default = statistics.median(found["default"][1:])
            show(
                f"refresh: {pairs} pairs, 499 candles each, from the same loopback, s",
                [
                    ("", "at the start", "each candle, median; its CPU", "default / this"),
                    *(
                        (
                            name,
                            f"{times[0]:.2f}",
                            f"{statistics.median(times[1:]):.2f}; {cpu_s[name]:.2f}",
                            f"{default / statistics.median(times[1:]):.1f}",
                        )
                        for name, times in found.items()
                    ),
                ],
            )
            ours = statistics.median(found["journal"][1:])
            require(default / ours >= 5, f"only {default / ours:.1f} times faster")


# --- FreqAI ---------------------------------------------------------------------------------------


def freqai(python: Path, directory: Path) -> None:
    """FreqAI trains and predicts from the store alone, as far back as it trains."""
    title = "freqai: LightGBM on 5m and 15m candles, funding rate and mark candles"
    show(title, training.live(python, directory, require))


def backtest(python: Path, directory: Path) -> None:
    """Files that `download-data` took from the store, and backtests of them."""
    show("backtest: of files from the store", training.backtest(python, directory, require))


# --- the aggregator -------------------------------------------------------------------------------


def forwards(name: str, directory: Path) -> None:
    """A proof of the aggregator, in a process of its own."""
    command = [sys.executable, "-m", f"tests.freqtrade.{name}", "--keep", str(directory / "kept")]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    require(code == 0, f"`{' '.join(command[1:3])}` ended with {code}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*",
        default=["ensemble", "live", "outage", "refresh", "freqai", "backtest", *FORWARDS[:-1]],
    )  # fmt: skip
    parser.add_argument("--candles", type=int, default=10)
    parser.add_argument(
        "--seconds", type=float, default=75.0, help="how long the store is away (75 or more)"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--keep", type=Path, help="a directory that does not exist yet, for the logs"
    )
    chosen = parser.parse_args()
    if chosen.seconds < 75:
        parser.error("--seconds: 75 or more: a shorter outage may lie between two closes")
    ways: dict[str, Callable[[Path, Path], None]] = {
        "live": lambda python, path: live(python, path, chosen.candles),
        "outage": lambda python, path: outage(python, path, chosen.seconds),
        "refresh": lambda python, path: refresh(python, path, chosen.rounds),
        "freqai": freqai,
        "backtest": backtest,
        "ensemble": lambda python, path: show("ensemble", ensemble(python, path, require)),
        **{name: lambda _, path, name=name: forwards(name, path) for name in FORWARDS},
    }
    if unknown := [name for name in chosen.what if name not in (*ways, "wheel")]:
        parser.error(f"unknown: {', '.join(unknown)}; there are wheel, {', '.join(ways)}")
    with tempfile.TemporaryDirectory(prefix="freqtrade-") as temporary:
        home = chosen.keep or Path(temporary)
        wheel = install_wheel(Path(temporary) / "environment")
        name = "wheel"
        try:
            check_wheel(wheel)
            for name in chosen.what:
                if name != "wheel":
                    (home / name).mkdir(parents=True)
                    began_s = time.monotonic()
                    ways[name](wheel.python, home / name)
                    _print(f"  {name} took {time.monotonic() - began_s:.0f} s")
        except Unexpected as found:
            _print(f"\n{name}: NOT AS IT SHOULD BE: {found}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
