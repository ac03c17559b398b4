"""Strangers at the status port take every descriptor they can: the collector and Prometheus go on.

`STRANGERS=10000` are more malformed requests; a third of them is as many idle connections.
"""

import contextlib
import json
import os
import resource
import socket
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from proc_commands import Collecting, Exchange, exchange, get, run_command, write_config

from tests.waiting import wait_until

DESCRIPTORS = 1_024
MALFORMED_REQUESTS = int(os.environ.get("STRANGERS", "4500"))
IDLE = MALFORMED_REQUESTS // 3
# Limits itself before it becomes `marketfeed run`, as systemd's LimitNOFILE does.
LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
HALF = b"GET /status HTTP/1.1\r\nAuthorization: Basic aW52ZW50ZWQ6c2VjcmV0"
EVENTS = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MALFORMED = b"GET /health HTTP/1.1\r\nHost: a\r\nAuthorization Basic aW52ZW50ZWQ6c2VjcmV0\r\n\r\n"


def connected(stack: contextlib.ExitStack, address: tuple[str, int], sent: bytes) -> None:
    """Connect and stay, never reading; a connection that is refused is none."""
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    one.settimeout(10.0)
    with contextlib.suppress(OSError):
        one.connect(address)
        one.sendall(sent)


def refused_once(address: tuple[str, int], sent: bytes) -> None:
    """One malformed request, and its answer."""
    with socket.create_connection(address, timeout=10.0) as one, contextlib.suppress(OSError):
        one.sendall(sent)
        one.recv(4_096)


def drop_all(venue: Exchange) -> None:
    """Let the exchange cut every WebSocket once."""
    with contextlib.closing(HTTPConnection(urlsplit(venue.rest_url).netloc, timeout=30.0)) as one:
        one.request("POST", "/simulator/faults", json.dumps({"fault": "drop"}))
        assert one.getresponse().status == 200


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_idle_half_sent_and_silent_connections_blind_nobody(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with exchange(tmp_path) as venue, contextlib.ExitStack() as strangers:
        config = write_config(tmp_path, venue.ws_url, venue.rest_url)
        command = [sys.executable, "-c", LIMITED, *run_command(config)]
        with Collecting(command, tmp_path / "run.log") as collector:
            wait_until(collector.is_delivering)
            address = ("127.0.0.1", int(collector.url.rpartition(":")[2]))
            for number in range(IDLE):
                sent = EVENTS if number < 100 else HALF if number % 2 else b""
                connected(strangers, address, sent)
                if number % 500 == 499:
                    # A scrape has a connection of its own each time.
                    assert get(collector.url + "/metrics").status == 200
                    assert open_descriptors(collector.process.pid) < DESCRIPTORS / 2
            opened = collector.log.count("connection open")
            drop_all(venue)
            wait_until(lambda: collector.log.count("connection open") > opened)
            wait_until(collector.is_delivering)
            for _ in range(MALFORMED_REQUESTS):
                refused_once(address, MALFORMED)
            assert get(collector.url + "/metrics").status == 200
            assert collector.stop() == 0
        assert len(collector.log) < 100_000
        assert "aW52ZW50ZWQ6c2VjcmV0" not in collector.log
        assert "secret" not in collector.log
