"""FreqAI on the store alone: a live bot that trains, and a backtest of files that came from there.

Mark prices are stored of the last three hours alone: what is older of mark candles, and both go back further
than `train_period_days`, is the exchange's own, which the collector has filled.
"""

import json
import re
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from harness import (
    BY_MODULE,
    EXAMPLES,
    REQUESTS,
    STRATEGIES,
    Bot,
    Line,
    environment,
    feeder_line,
    past_rows,
    settled_rows,
)
from harness_config import bot_config

Require = Callable[[object, str], None]
Rows = list[tuple[object, ...]]

PAIRS: Final = 3
TIMEFRAMES: Final = ("5m", "15m")
HISTORY_DAYS: Final = 5
MARK_HOURS: Final = 3
"""Of so many hours the store has mark prices, from which candles could be made."""
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
MODEL: Final = ("--freqaimodel", "LightGBMRegressor")
STRATEGY: Final = "FreqaiWithMarketfeed"
INFERENCE: Final = "Total time spent inferencing pairlist"
COMMAND_S: Final = 600.0

_LOOK: Final = """
import json, sys
from pathlib import Path
import pandas as pd

def ms(dates):
    return [int(at.timestamp() * 1000) for at in dates]

found = {"files": {}, "models": []}
for path in sorted(Path(sys.argv[1]).glob("data/**/*.feather")):
    frame = pd.read_feather(path)
    values = frame.drop(columns="date").astype(float).to_numpy().tolist()
    found["files"][path.name.removesuffix(".feather")] = [ms(frame["date"]), values]
for path in sorted(Path(sys.argv[1]).glob("models/**/*_trained_df.pkl")):
    features = pd.read_pickle(path)
    dates = pd.read_pickle(path.with_name(path.name.replace("trained_df", "trained_dates_df")))
    wanted = {
        name: int(features[name].nunique())
        for name in features.columns
        if name.startswith(("%-premium", "%-funding"))
    }
    # Those of what it was tested with follow: it is split off the end.
    times = ms(pd.to_datetime(pd.DataFrame(dates).iloc[: len(features), 0], utc=True))
    found["models"].append([path.name, len(features), min(times), max(times), wanted])
print(json.dumps(found))
"""
"""Run by Freqtrade's Python: the candles in its files by name, and what its models were trained with."""


class Model(NamedTuple):
    """A trained model: its file, rows, the first and last candle (ms), different values of some features."""

    name: str
    rows: int
    first_ms: int
    last_ms: int
    features: dict[str, int]

    @property
    def ends_ms(self) -> int:
        """When what it was trained for begins: Freqtrade names it so."""
        found = re.search(r"_(\d{10})_trained_df", self.name)
        assert found is not None, self.name
        return int(found[1]) * 1000


class Kept(NamedTuple):
    """What Freqtrade has put below its user_data: candles (open times in ms, values) by file, and models."""

    files: dict[str, tuple[list[int], list[list[float]]]]
    models: list[Model]

    def first_ms(self, kind: str) -> dict[str, int]:
        """The first candle of each file of a kind, such as `1h-mark`."""
        return {name: times[0] for name, (times, _) in self.files.items() if name.endswith(kind)}


def kept(python: Path, directory: Path) -> Kept:
    """Read what Freqtrade has kept below `directory`."""
    done = subprocess.run(
        [python, "-c", _LOOK, directory / "user_data"],
        env=environment(PYTHONPATH=""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return Kept(found["files"], [Model(*one) for one in found["models"]])


@contextmanager
def filled_line(directory: Path) -> Iterator[Line]:
    """A line whose collector has filled its history, that of mark candles, too."""
    with feeder_line(
        directory / "line",
        PAIRS,
        timeframes=TIMEFRAMES,
        candles=HISTORY_DAYS * 288 + 60,
        mark_hours=MARK_HOURS,
        history={"days": HISTORY_DAYS},
    ) as line:
        deadline_s = time.monotonic() + COMMAND_S
        while True:
            history = line.collector.status()["history"]
            names = ("history", "mark_candles")
            states = {name: history[name] and history[name]["state"] for name in names}
            if set(states.values()) == {"complete"}:
                break
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"history is not filled: {states}")
            time.sleep(0.5)
        yield line


def of(requests: Mapping[str, int]) -> dict[str, int]:
    """The requests that a feeder on the store must not make."""
    return {name: requests.get(name, 0) for name in REQUESTS}


def settings() -> dict[str, Any]:
    """The example's, as a user merges them; models of a backtest are kept, too."""
    config: dict[str, Any] = json.loads((EXAMPLES / "freqai.config.json").read_text())
    # Else a backtest keeps its predictions alone.
    config["freqai"]["save_backtest_models"] = True
    return config


def check_models(models: Sequence[Model], count: int, require: Require) -> Rows:
    """Each was trained of the `train_period_days` before its time, with what is stored of all of them."""
    train_ms = settings()["freqai"]["train_period_days"] * DAY_MS
    require(len(models) >= count, f"{len(models)} models were trained")
    for one in models:
        begun_ms = one.ends_ms - train_ms
        # Test data is split off the end; the first hour lacks a mark candle that ended before it.
        require(
            begun_ms <= one.first_ms <= begun_ms + 2 * HOUR_MS,
            f"{one.name} was trained from {one.first_ms} on, not {begun_ms}",
        )
        require(one.rows > 0.7 * train_ms / (DAY_MS / 288), f"{one.name}: only {one.rows} rows")
        hours = (one.last_ms - one.first_ms) // HOUR_MS
        premiums = max(n for name, n in one.features.items() if name.startswith("%-premium"))
        rates = max(n for name, n in one.features.items() if name.startswith("%-funding"))
        require(premiums > 0.9 * hours, f"{one.name}: {premiums} premiums of {hours} hours")
        require(rates >= hours // 8, f"{one.name}: {rates} funding rates of {hours} hours")
    return [
        (
            f"{one.name.partition('_trained')[0]}: {one.rows} rows",
            f"from {(one.ends_ms - one.first_ms) / DAY_MS:.2f} days before it",
        )
        for one in models[-2 * PAIRS :]
    ]


# --- live -----------------------------------------------------------------------------------------


def live(python: Path, directory: Path, require: Require) -> Rows:
    """FreqAI's LightGBM example trains and predicts from the store alone."""
    with filled_line(directory) as line:
        env = {"MARKETFEED_URL": line.reader_url, "MARKETFEED_MISSING": "raise"}
        before = Counter(line.requests())
        began_ms = int(time.time() * 1000)
        with Bot(
            python, directory / "bot", line.exchange.rest_url, line.pairs, strategy=STRATEGY,
            strategy_path=EXAMPLES, timeframe="5m", env=env, config=settings(), arguments=MODEL,
        ) as bot:  # fmt: skip
            bot.wait_log(r"Done training \S+", COMMAND_S, count=PAIRS)
            # From the next candle on the models are asked.
            asked_before = bot.log.count(INFERENCE)
            bot.wait_log(INFERENCE, COMMAND_S, count=asked_before + 1)
            asked = Counter(line.requests()) - before
            require(not any(of(asked).values()), f"requests: {of(asked)}")
            require("Failed to download" not in bot.log, "a download failed")
        found = kept(python, directory / "bot")
        trained = check_models(found.models, PAIRS, require)
        train_ms = settings()["freqai"]["train_period_days"] * DAY_MS
        first = {kind: found.first_ms(kind) for kind in ("1h-mark", "1h-funding_rate")}
        for kind, rows in first.items():
            require(len(rows) == PAIRS, f"files of {kind}: {sorted(found.files)}")
            late = max(rows.values()) - (began_ms - train_ms)
            require(late <= 8 * HOUR_MS * (kind != "1h-mark"), f"{kind} begins {late} ms late")
        days = [f"{(began_ms - max(rows.values())) / DAY_MS:.2f}" for rows in first.values()]
        return [
            ("klines, fundingRate, markPriceKlines", of(asked)),
            ("mark and funding files, days back", ", ".join(days)),
            *trained,
        ]


# --- a backtest -----------------------------------------------------------------------------------


def backtest(python: Path, directory: Path, require: Require) -> Rows:
    """`download-data` through the seam, then backtests: FreqAI's, and one that holds its trades."""
    with filled_line(directory) as line:
        began_ms = int(time.time() * 1000)
        run = _Commands(python, directory / "backtest", line)
        train_days = settings()["freqai"]["train_period_days"]
        # Windows of a day: two models a pair.
        until_s = began_ms // DAY_MS * DAY_MS // 1000 + 3600 * (began_ms % DAY_MS // HOUR_MS)
        since_s = until_s - 36 * 3600
        from_s = since_s - train_days * 86_400 - 12 * 3600
        before = Counter(line.requests())
        run(
            "download-data", "--timeframes", *TIMEFRAMES,
            "--timerange", f"{from_s}-", "--pairs", *line.pairs,
        )  # fmt: skip
        downloaded = Counter(line.requests()) - before
        require(not any(of(downloaded).values()), f"download-data asked: {of(downloaded)}")
        timerange = ("--timerange", f"{since_s}-{until_s}", "--cache", "none", "--export", "trades")
        run(
            "backtesting", "--strategy", STRATEGY, "--strategy-path", str(EXAMPLES), *MODEL,
            *timerange, config=settings(),
        )  # fmt: skip
        found = kept(python, run.directory)
        run("backtesting", "--strategy", "Holds", "--strategy-path", str(STRATEGIES), *timerange)
        asked = Counter(line.requests()) - before
        require(not any(of(asked).values()), f"requests: {of(asked)}")
        trained = check_models(found.models, 2 * PAIRS, require)
        rows = _check_files(found, line, from_s * 1000, began_ms, require)
        trades = run.trades("Holds")
        fees = [trade["funding_fees"] for trade in trades]
        require(len(trades) == PAIRS and all(fees), f"funding fees of held trades: {fees}")
        return [
            ("requests of download-data", of(downloaded)),
            ("… and of both backtests", of(asked)),
            ("downloaded, equal to the exchange's", rows),
            ("funding fees of held trades", ", ".join(f"{fee:.4f}" for fee in fees)),
            *trained,
        ]


class _Commands:
    """Runs commands of Freqtrade in one directory, through the seam: a strategy need not install it."""

    def __init__(self, python: Path, directory: Path, line: Line) -> None:
        self.directory = directory
        self._python = python
        self._line = line
        (directory / "user_data" / "data").mkdir(parents=True)

    def __call__(self, *arguments: str, config: Mapping[str, Any] | None = None) -> str:
        """Run one to its end; return its log. Raises RuntimeError."""
        own = bot_config(
            self.directory, self._line.exchange.rest_url, self._line.pairs, "5m", 0
        ) | dict(config or {})
        file = self.directory / "config.json"
        file.write_text(json.dumps(own, indent=2))
        env = environment(
            PYTHONPATH="",
            HOME=str(self.directory),
            SEEN_DIR=str(self.directory),
            MARKETFEED_URL=self._line.reader_url,
            MARKETFEED_MISSING="raise",
        )
        done = subprocess.run(
            [
                self._python, *BY_MODULE, *arguments, "--config", file,
                "--user-data-dir", self.directory / "user_data",
            ],
            cwd=self.directory, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=COMMAND_S,
        )  # fmt: skip
        with (self.directory / "freqtrade.log").open("a") as log:
            log.write(done.stdout)
        # A download that fails is logged, and the command goes on.
        if done.returncode != 0 or "Failed to download" in done.stdout:
            raise RuntimeError(f"{arguments[0]} exited {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout

    def trades(self, strategy: str) -> list[dict[str, Any]]:
        """The trades of the last backtest."""
        newest = max((self.directory / "user_data" / "backtest_results").glob("*.zip"))
        with zipfile.ZipFile(newest) as archive:
            result = json.loads(archive.read(f"{newest.stem}.json"))
        trades: list[dict[str, Any]] = result["strategy"][strategy]["trades"]
        return trades


def _check_files(found: Kept, line: Line, from_ms: int, began_ms: int, require: Require) -> str:
    """Compare all that was downloaded with what the exchange gives; return how many rows of each kind."""
    counts: Counter[str] = Counter()
    for pair in line.pairs:
        name = pair.replace("/", "_").replace(":", "_")
        for kind in (*(f"{one}-futures" for one in TIMEFRAMES), "1h-mark", "1h-funding_rate"):
            times, values = found.files[f"{name}-{kind}"]
            timeframe, _, what = kind.partition("-")
            if what == "funding_rate":
                truth = settled_rows(line.exchange.rest_url, pair, from_ms)
            else:
                endpoint = "klines" if what == "futures" else "markPriceKlines"
                rows = past_rows(line.exchange.rest_url, pair, timeframe, from_ms, endpoint)
                # A mark candle's volume means nothing.
                width = 6 if what == "futures" else 5
                truth = {row[0]: [float(text) for text in row[1:width]] for row in rows}
                length_ms = int(timeframe[:-1]) * (HOUR_MS if timeframe[-1] == "h" else 60_000)
                require(
                    times == list(range(times[0], times[-1] + 1, length_ms)),
                    f"{name}-{kind}: a hole",
                )
                require(times[0] <= from_ms + length_ms, f"{name}-{kind} begins at {times[0]}")
                require(times[-1] >= began_ms - 2 * length_ms, f"{name}-{kind} ends at {times[-1]}")
            # Freqtrade's files may hold the last hour as it was made of mark prices.
            sure_ms = began_ms - 2 * HOUR_MS if what == "mark" else began_ms + DAY_MS
            wrong = [
                at
                for at, row in zip(times, values, strict=True)
                if at < sure_ms and truth.get(at) != row[: len(truth.get(at, ()))]
            ]
            require(not wrong, f"{name}-{kind}: {len(wrong)} rows are not the exchange's")
            due = {at for at in truth if from_ms + DAY_MS // 24 <= at <= times[-1]}
            require(due <= set(times), f"{name}-{kind}: {len(due - set(times))} rows lack")
            counts[kind] += len(times)
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())
