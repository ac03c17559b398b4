"""The aggregator in front of a real Freqtrade in dry-run: an ensemble becomes one trade, whatever is cut.

By hand: `python tests/freqtrade/prove.py ensemble`.
"""

import contextlib
import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from freqtrade_client import FtRestClient
from harness import ROOT, Bot, choose_pairs, exchange
from harness_config import PASSWORD, USER

sys.path.append(str(ROOT / "tests" / "aggregator"))

from running import FLEET, Process, config, rows

from tests.waiting import wait_until

TAG: Final = "long ensemble 3/5 conf=0.82 from=79"
VOTES: Final = (("73", 0.85), ("74", 0.72), ("79", 0.88))
WINDOW_S: Final = 1.0
LEVERAGE: Final = 3.0


class Between:
    """A proxy between aggregator and bot. `hold` and `cut` swallow the answer to an order.

    `hold`: the connection stays open, until `let_go`. The order has always reached the bot then.
    """

    def __init__(self, bot_url: str) -> None:
        self.mode = ""
        self.orders: list[dict[str, Any]] = []
        self.let_go = threading.Event()
        self._bot = urlsplit(bot_url).netloc
        between = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                between._handle(self.rfile, self.wfile)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Between"]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.let_go.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _handle(self, incoming: Any, outgoing: Any) -> None:
        method, path, _ = incoming.readline().decode().split()
        headers = {}
        while line := incoming.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        body = incoming.read(int(headers.get("content-length", "0")))
        with contextlib.closing(HTTPConnection(self._bot, timeout=30.0)) as connection:
            connection.request(method, path, body, headers)
            if method == "POST":
                self.orders.append(json.loads(body))
                if self.mode == "hold":
                    self.let_go.wait()
            answer = connection.getresponse()
            data = answer.read()
            if method == "POST" and self.mode in ("hold", "cut"):
                return
            head = [f"HTTP/1.1 {answer.status} {answer.reason}", f"Content-Length: {len(data)}"]
            head += [
                f"{name}: {value}" for name, value in answer.getheaders() if name.lower() == "date"
            ]
            outgoing.write("\r\n".join([*head, "Connection: close", "", ""]).encode() + data)


def vote(url: str, pair: str) -> None:
    """Post the three votes, as feeders do: with Freqtrade's own client."""
    client = FtRestClient(url, *FLEET)
    for feeder, confidence in VOTES:
        answer = client.forceenter(
            pair,
            "long",
            order_type="market",
            leverage=LEVERAGE,
            enter_tag=f"long from {feeder} conf={confidence} (DQ: profit=3.05%, safety=0.39%)",
        )
        if "votes" not in str(answer):
            raise AssertionError(answer)


def state_of(directory: Path, pair: str) -> str:
    """How the forward of a pair stands; "" when there is none."""
    found = rows(directory, "SELECT state FROM forwarded WHERE pair = ?", (pair,))
    return found[0][0] if found else ""


def ensemble(
    python: Path, directory: Path, require: Callable[[object, str], None]
) -> list[tuple[Any, ...]]:
    """Forward to a real Freqtrade; cut and kill between order and answer. Returns lines to show."""
    pairs = choose_pairs(4)
    lines: list[tuple[Any, ...]] = [("", "state", "s from order to end", "trades of the pair")]
    (home := directory / "aggregator").mkdir()
    with (
        exchange(directory, pairs=4, speed=1.0, timeframes="1m,3m,5m,15m,1h") as sim,
        Bot(python, directory / "bot", sim.rest_url, pairs, api=True) as bot,
        Between(bot.url).running() as between,
    ):
        bot.wait_running()
        (home / "bot_password").write_text(PASSWORD)
        given = {
            "url": between.url,
            "username": USER,
            "password_file": str(home / "bot_password"),
            "timeout_s": 10,
        }
        file = config(home, {"long": given}, window_s=WINDOW_S)

        def trades(pair: str) -> list[dict[str, Any]]:
            return [trade for trade in bot.api("GET", "status").body if trade["pair"] == pair]

        def ends(name: str, pair: str, wanted: str) -> None:
            wait_until(
                lambda: state_of(home, pair) not in ("", "queued", "sending", "unknown"),
                timeout_s=60,
            )
            ((state, took_ms),) = rows(
                home, "SELECT state, changed - sent FROM forwarded WHERE pair = ?", (pair,)
            )
            found = trades(pair)
            lines.append((name, state, f"{took_ms / 1000:.2f}", [t["enter_tag"] for t in found]))
            require(state == wanted, f"{name}: {state}")
            require(len(found) == 1, f"{name}: {len(found)} trades")
            trade = found[0]
            require(trade["enter_tag"] == TAG, f"{name}: tag {trade['enter_tag']!r}")
            require(trade["leverage"] == LEVERAGE and not trade["is_short"], f"{name}: {trade}")

        process = Process(file)
        try:
            vote(process.url, pairs[0])
            ends("answered", pairs[0], "accepted")
            between.mode = "cut"
            vote(process.url, pairs[1])
            ends("answer cut off", pairs[1], "found")
            between.mode = "hold"
            vote(process.url, pairs[2])
            wait_until(lambda: len(between.orders) == 3)
            process.kill()
            require(state_of(home, pairs[2]) == "sending", "killed at another moment")
            between.let_go.set()
            between.mode = ""
            wait_until(lambda: trades(pairs[2]), timeout_s=30)
            process = Process(file)
            ends("SIGKILL before the answer", pairs[2], "found")
            # Freqtrade's own refusal, for the pair that is open already; a vote that differs.
            before = len(between.orders)
            time.sleep(2 * WINDOW_S)
            client = FtRestClient(process.url, *FLEET)
            for feeder, _ in VOTES:
                client.forceenter(pairs[0], "long", enter_tag=f"from {feeder} conf=0.9")
            wait_until(
                lambda: len(rows(home, "SELECT 1 FROM forward WHERE status = 502")) == 1,
                timeout_s=60,
            )
            ((words,),) = rows(home, "SELECT answer FROM forward WHERE status = 502")
            lines.append(("again", "refused", "", words))
            require("already open" in words, words)
            require(len(between.orders) == before + 1 == 4, f"{len(between.orders)} orders")
            require(len(bot.api("GET", "status").body) == 3, "not three trades")
            require(process.stop() == 0, "".join(process.lines))
        finally:
            if process.process.poll() is None:
                process.kill()
        bot.stop()
    return lines
