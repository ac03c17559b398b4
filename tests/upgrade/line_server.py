"""An InfluxDB 1.x that takes every line, keeps them all in their order, and can hold its answers back."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from marketfeed import schema
from tests.waiting import wait_until

AGAIN: Final = (schema.FEED_CATALOG, f"{schema.FORMING_PREFIX}")
"""What is sent again and again: the catalog, and the last states of forming candles."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients are killed."""


class LineServer:
    """`lines` are all that has come; `under_way` counts how often each may come again, by `hold`.

    They are the rows whose request got no answer, and those of the request before it: while the next batch
    travels, a shipper notes that one in its journal.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.under_way: Counter[str] = Counter()
        self._unanswered = 0
        self._last: list[str] = []
        self.url = ""
        self._holding = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve until the block ends."""
        server = _Server(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def take(self, lines: list[str]) -> bool:
        """Keep the lines of a request; whether it is answered."""
        with self._lock:
            self.lines += lines
            rows = list(filter(is_row, lines))
            if self._holding.is_set():
                self.under_way.update({*rows, *self._last})
                self._last = []
                self._unanswered += len(rows)
                return False
            self._last = rows or self._last
            return True

    def hold(self) -> None:
        """Answer nothing any more; returns when rows of a journal have come that got no answer."""
        self._unanswered = 0
        self._holding.set()
        wait_until(lambda: self._unanswered)

    def answer(self) -> None:
        """Answer again what comes from now on."""
        self._holding.clear()

    def repeats(self) -> Counter[str]:
        """How often each row has come more than once, as the same line.

        Not of gaps: one that is tried again is found again, a row that has changed, and the same line.
        """
        with self._lock:
            counts = Counter(
                line for line in self.lines if is_row(line) and not line.startswith(schema.FEED_GAP)
            )
        return Counter({line: count - 1 for line, count in counts.items() if count > 1})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.take(body.decode().splitlines()):
                    self.send_response(204)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    # The connection stays open until the client goes away.
                    self.rfile.read(1)
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


def is_row(line: str) -> bool:
    """Whether a line is a numbered row's, which is shipped once."""
    return not line.startswith(AGAIN)
