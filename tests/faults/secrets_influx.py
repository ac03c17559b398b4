"""A server in InfluxDB's place that is as talkative as can be: its errors repeat what it was sent."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TalkativeInflux(ThreadingHTTPServer):
    """Answers with `status`; `authorizations` are the headers it has been sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status = 204
        self.authorizations: set[str] = set()
        self.answered = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TalkativeInflux

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        header = self.headers.get("Authorization", "")
        if header:
            self.server.authorizations.add(header)
        status = self.server.status
        text = f'{{"code":"unauthorized","message":"refused: Authorization: {header}"}}'
        body = b"" if status == 204 else text.encode()
        self.send_response(status, "No" if status == 204 else f"Refused {header}"[:80])
        if status in (301, 307):
            self.send_header("Location", f"{self.server.url}/elsewhere?{header}".replace(" ", "_"))
        self.send_header("X-Influxdb-Version", "2.7.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.answered += 1

    do_GET = do_POST = _answer  # noqa: N815 - as http.server wants them named

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@contextlib.contextmanager
def talkative_influx() -> Iterator[TalkativeInflux]:
    """Run one on loopback."""
    with TalkativeInflux() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
