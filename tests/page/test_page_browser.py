"""The collector's page in a real Chromium, with a simulated exchange and a collector behind it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chromium import Chrome, axe_violations, browser, complaints, scheme
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.keys import Keys

from tests.waiting import wait_until

PAIRS = 6
SPEED = 20
TOKEN = "an-invented-token-0123"  # noqa: S105
WAIT_S = 180.0


class Process:
    """A marketfeed process and the addresses that it has logged."""

    def __init__(self, *arguments: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("MARKETFEED_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "marketfeed", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=kept,
        )
        self.lines: list[str] = []
        self.urls: dict[str, str] = {}
        self._addresses_known = threading.Event()
        # A full pipe would bring the process to a stand.
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        if not self._addresses_known.wait(WAIT_S) or not self.urls:
            self.stop()
            raise AssertionError("".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if " listening " in line:
                self.urls = dict(re.findall(r"(\w+_url)=(\S+)", line))
                self._addresses_known.set()
        self.process.stderr.close()
        self._addresses_known.set()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reading.join(WAIT_S)


class Line:
    """What a test turns: the exchange's faults and the collector's process."""

    def __init__(self, simulator: Process, collector: Process) -> None:
        self.collector = collector
        self.url = collector.urls["status_url"]
        self._control = simulator.urls["rest_url"] + "/simulator/faults"

    def start_fault(self, **fault: Any) -> None:
        self._ask("POST", json.dumps(fault).encode())

    def end_faults(self) -> None:
        self._ask("DELETE", None)

    def _ask(self, method: str, body: bytes | None) -> None:
        request = urllib.request.Request(  # noqa: S310 - the simulator on this host
            self._control, data=body, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT_S):  # noqa: S310
            pass


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    path = tmp_path_factory.mktemp("page")
    simulator = Process(
        "simulate", f"--pairs={PAIRS}", f"--speed={SPEED}", "--timeframes=1m,3m", "--port=0"
    )
    try:
        config = path / "config.yaml"
        settings = {
            "exchange": {
                "ws_url": simulator.urls["ws_url"],
                "rest_url": simulator.urls["rest_url"],
                "pairs": {"top": PAIRS},
                "timeframes": ["1m", "3m"],
            },
            "journal": {"path": str(path / "journal.db")},
            "status": {"port": 0, "token_file": str(path / "token")},
            "history": {"days": 1},
        }
        # JSON is YAML.
        config.write_text(json.dumps(settings))
        (path / "token").write_text(TOKEN)
        (path / "token").chmod(0o600)
        collector = Process("run", f"--config={config}")
        try:
            yield Line(simulator, collector)
        finally:
            collector.stop()
    finally:
        simulator.stop()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory, line: Line) -> Iterator[Chrome]:
    with browser(tmp_path_factory.mktemp("chromium")) as driver:
        # As if its user had been asked: what was once shown is asked for by the page itself, too.
        driver.get(line.url.replace("http://", f"http://operator:{TOKEN}@") + "/status")
        yield driver


@pytest.fixture
def page(chromium: Chrome, line: Line) -> Iterator[Chrome]:
    """The page, freshly opened and filled; it may complain of nothing."""
    chromium.get("about:blank")
    chromium.get(line.url + "/")
    until(lambda: states(chromium) == ["fresh"] * PAIRS, chromium)
    until(lambda: "mark price" in text(chromium, "chart-values"), chromium)
    yield chromium
    assert complaints(chromium) == []


def until(condition: Callable[[], bool], driver: Chrome) -> None:
    def holds() -> bool:
        # Drawn anew between two looks.
        with contextlib.suppress(StaleElementReferenceException):
            return condition()
        return False

    wait_until(holds, lambda: driver.find_element("tag name", "body").text)


def text(driver: Chrome, name: str) -> str:
    return str(driver.find_element("id", name).text)


def states(driver: Chrome) -> list[str | None]:
    return list(
        driver.execute_script(
            "return [...document.querySelectorAll('#tiles button')].map((b) => b.dataset.state)"
        )
    )


def tiles(driver: Chrome) -> list[Any]:
    return list(driver.find_elements("css selector", "#tiles button"))


def test_it_fills_and_goes_on(page: Chrome) -> None:
    until(lambda: text(page, "headline") == "● All is well", page)
    assert page.title == "● Marketfeed"
    assert [tile.get_attribute("title") for tile in tiles(page)][:1] == ["BTC/USDT:USDT"]
    # By more than colour.
    assert all("●" in tile.text for tile in tiles(page))
    assert text(page, "chart-title") == "BTC/USDT:USDT 1m"
    panels = text(page, "panels")
    for name in (
        "Feed",
        "Connections",
        "Gaps and healing",
        "REST",
        "History and audit",
        "InfluxDB",
    ):
        assert name in panels
    assert "none: the journal is the store" in panels
    drawn = page.execute_script(
        """return [...document.querySelectorAll('#canvas canvas')].some((canvas) => {
             if (!canvas.width || !canvas.height) return false;
             const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
             const colours = new Set();
             for (let at = 0; at < all.length; at += 4) colours.add(all.slice(at, at + 3).join());
             return colours.size > 5;
           })"""
    )
    assert drawn, "the chart is blank"
    before = text(page, "clock"), text(page, "chart-values")
    until(lambda: text(page, "clock") > before[0] and text(page, "chart-values") != before[1], page)
    # The table holds what the canvas shows, and goes on, too.
    page.execute_script("document.querySelector('details').open = true")
    newest = page.find_element("css selector", "#rows td").text
    until(lambda: page.find_element("css selector", "#rows td").text[:16] > newest[:16], page)


def test_the_keyboard_is_enough(page: Chrome) -> None:
    def focused() -> Any:
        return page.switch_to.active_element

    def press(key: str) -> None:
        focused().send_keys(key)

    press(Keys.TAB)
    assert focused().text == "To the chart"
    for _ in range(3):
        press(Keys.TAB)
    # One stop for all tiles; arrows go on from there.
    assert focused().get_attribute("title") == "BTC/USDT:USDT"
    press(Keys.ARROW_RIGHT)
    chosen = focused().get_attribute("title")
    assert chosen == tiles(page)[1].get_attribute("title")
    press(Keys.ENTER)
    until(lambda: text(page, "chart-title") == f"{chosen} 1m", page)
    until(lambda: "mark price" in text(page, "chart-values"), page)
    assert [tile.get_attribute("aria-pressed") for tile in tiles(page)[:2]] == ["false", "true"]
    press(Keys.END)
    assert focused().get_attribute("title") == tiles(page)[-1].get_attribute("title")
    press(Keys.TAB)
    assert focused().get_attribute("id") == "timeframe"
    press(Keys.ARROW_DOWN)
    until(lambda: text(page, "chart-title") == f"{chosen} 3m", page)
    # A place that can be kept: opened anew, it shows the same.
    page.refresh()
    until(lambda: text(page, "chart-title") == f"{chosen} 3m", page)
    page.find_element("id", "find").send_keys("eth")
    assert [tile.get_attribute("title") for tile in tiles(page) if tile.is_displayed()] == [
        "ETH/USDT:USDT"
    ]


def test_while_it_fills_it_says_so_and_is_not_called_well(page: Chrome) -> None:
    """As live.js shows it: a real filling is over before a browser looks."""
    shown = page.execute_async_script(
        """const done = arguments[arguments.length - 1];
        import("/page/live.js").then(({ headline }) => {
          const line = document.getElementById("headline");
          const status = { state: "filling", ready_pairs: 2, pairs: 6, reasons: [] };
          headline(status, "Marketfeed");
          const filling = [line.textContent, line.className, document.title];
          headline({ ...status, state: "not well", reasons: ["a", "b"] }, "Marketfeed");
          done([...filling, line.textContent]);
        });"""
    )
    assert shown == [
        "◔ Filling: 2 of 6 pairs are ready",
        "headline good",
        "◔ Marketfeed",
        "✕ Not well: 2 reasons",
    ]
    until(lambda: text(page, "headline") == "● All is well", page)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_warnings_are_shown_beside_what_is_well(page: Chrome, dark: bool) -> None:
    """As live.js shows them: a real one takes a day without a pair."""
    command = "marketfeed pairs --drop NO/USDT:USDT"
    script = """const done = arguments[arguments.length - 1], warnings = arguments[0];
        import("/page/live.js").then(({ headline }) => {
          headline({ state: "well", ready_pairs: 6, pairs: 6, reasons: [], warnings }, "Marketfeed");
          const list = document.getElementById("warnings");
          const style = getComputedStyle(list);
          done([
            document.getElementById("headline").textContent,
            [...list.children].map((one) => one.textContent),
            list.hidden, list.getBoundingClientRect().height > 0,
            style.backgroundColor !== getComputedStyle(document.body).backgroundColor,
          ]);
        });"""
    scheme(page, dark)
    try:
        texts = [f"NO/USDT:USDT is gone: `{command}` drops it", "<b>another</b>"]
        shown = page.execute_async_script(script, texts)
        assert shown == ["● All is well", texts, False, True, True]
        # Before the next second draws it anew.
        page.execute_script("document.getElementById('warnings').id = 'kept'")
        page.find_element("id", "kept")
        assert axe_violations(page) == []
        page.execute_script("document.getElementById('kept').id = 'warnings'")
        until(lambda: not page.find_element("id", "warnings").is_displayed(), page)
        assert page.execute_async_script(script, []) == ["● All is well", [], True, False, True]
    finally:
        scheme(page, False)


def test_the_panels_tell_of_what_is_missing_and_no_reason(page: Chrome) -> None:
    figures = page.execute_script(
        """return Object.fromEntries([...document.querySelectorAll("dt")]
             .map((one) => [one.textContent, one.nextElementSibling.textContent]))"""
    )
    for name in (
        "Candles missing",
        "Missing of pairs halted or ended",
        "Candles that the exchange does not have",
        "Refused lines kept",
        "Rejected frames kept",
    ):
        assert figures[name] == "0", figures


def test_a_pair_that_falls_silent_turns_red_and_recovers(page: Chrome, line: Line) -> None:
    def background(index: int) -> str:
        return str(tiles(page)[index].value_of_css_property("background-color"))

    at = [tile.get_attribute("title") for tile in tiles(page)].index("ETH/USDT:USDT")
    well = background(at)
    line.start_fault(fault="mute", stream="ethusdt@markPrice*")
    try:
        until(lambda: states(page)[at] == "silent", page)
        assert "✕ silent" in tiles(page)[at].text
        assert background(at) != well
        assert [state for index, state in enumerate(states(page)) if index != at] == ["fresh"] * (
            PAIRS - 1
        )
        until(lambda: "Not well" in text(page, "headline"), page)
        assert "ETH/USDT:USDT mark_price overdue" in text(page, "reasons")
        assert page.title == "✕ 1 silent – Marketfeed"
        page.find_element("id", "troubled").click()
        shown = [tile.get_attribute("title") for tile in tiles(page) if tile.is_displayed()]
        assert shown == ["ETH/USDT:USDT"]
    finally:
        line.end_faults()
    until(lambda: states(page)[at] == "fresh", page)
    until(lambda: text(page, "headline") == "● All is well", page)


def test_a_collector_that_hangs_looks_well_no_longer(page: Chrome, line: Line) -> None:
    def is_live() -> bool:
        return bool(page.execute_script("return document.body.dataset.live === 'live'"))

    fresh = tiles(page)[0].value_of_css_property("background-color")
    line.collector.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: not is_live(), page)
        assert "Nothing is heard since" in text(page, "headline")
        assert page.title == "✕ not heard – Marketfeed"
        assert tiles(page)[0].value_of_css_property("background-color") != fresh
    finally:
        line.collector.process.send_signal(signal.SIGCONT)
    until(is_live, page)
    until(lambda: states(page) == ["fresh"] * PAIRS, page)
    # What the browser itself logs of a request that was not answered.
    unanswered = [one for one in complaints(page) if "net::ERR" not in one["message"]]
    assert unanswered == []


def test_pages_that_were_left_keep_no_connection(page: Chrome, line: Line) -> None:
    # A browser keeps them for the way back, and has six connections to a host.
    for _ in range(7):
        page.get("about:blank")
        page.get(line.url + "/")
        until(lambda: states(page) == ["fresh"] * PAIRS, page)
    until(lambda: "mark price" in text(page, "chart-values"), page)
    answers = page.execute_script(
        """return performance.getEntriesByType('resource')
             .filter((one) => one.name.includes('/candles')).map((one) => one.responseStatus)"""
    )
    # None has waited in vain.
    assert set(answers) == {200}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_readable_by_everybody_and_on_a_phone(page: Chrome, dark: bool) -> None:
    scheme(page, dark)
    try:
        paper = page.find_element("tag name", "body").value_of_css_property("background-color")
        darkness = [int(part) < 128 for part in re.findall(r"\d+", paper)[:3]]
        assert darkness == [dark] * 3
        page.execute_script("document.querySelector('details').open = true")
        assert axe_violations(page) == []
        page.resize(320, 640)
        wide = "return [document.documentElement.scrollWidth, window.innerWidth]"
        until(lambda: page.execute_script(wide) == [320, 320], page)
        assert axe_violations(page) == []
    finally:
        scheme(page, False)
        page.resize(1280, 900)
