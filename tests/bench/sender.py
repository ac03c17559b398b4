"""The exchange of a measurement: a WebSocket server that plays a tape and does nothing else meanwhile.

It takes names by SUBSCRIBE frames or in the URL (`?streams=`), and begins when every stream of the tape
is listened to; each connection gets the frames of its streams. Blocking sockets in threads: what counts
is that the server is never what is waited for.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.bench import jobs
from tests.bench.tape import Tape

_FRAMES_PER_WRITE: Final = 256
_SUBSCRIBE_TIMEOUT_S: Final = 60.0


class _Request(msgspec.Struct):
    method: str
    id: int
    params: list[str] = []


class _Connection:
    """One client. `names` are the streams it listens to."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.names: set[str] = set()
        self._socket = sock
        self._protocol = ServerProtocol()
        # Answers (pongs) of the reading thread must not fall into the middle of a write.
        self._lock = threading.Lock()

    def receive(self) -> bool:
        """Read the client's next message; False when it has gone."""
        try:
            data = self._socket.recv(65_536)
        except OSError:
            return False
        with self._lock, contextlib.suppress(OSError):
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if isinstance(event, Request):
                    self._protocol.send_response(self._protocol.accept(event))
                    query = parse_qs(urlsplit(event.path).query)
                    self.names.update(*(names.split("/") for names in query.get("streams", ())))
                elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    request = msgspec.json.decode(event.data, type=_Request)
                    self._protocol.send_text(b'{"result":null,"id":%d}' % request.id)
                    self.names.update(request.params)
            for part in self._protocol.data_to_send():
                if part:
                    self._socket.sendall(part)
            if self._protocol.close_expected():
                self._socket.shutdown(socket.SHUT_WR)
        return bool(data)

    def send(self, data: bytes) -> None:
        """Write whole frames; waits while the client does not take them."""
        with self._lock:
            self._socket.sendall(data)


class _Clients:
    """All connections, and the moment at which they listen to everything."""

    def __init__(self, server: socket.socket, names: set[str]) -> None:
        self.connections: list[_Connection] = []
        self._server = server
        self._names = names
        self._changed = threading.Condition()

    def accept(self) -> None:
        """Take connections for ever."""
        with contextlib.suppress(OSError):
            while True:
                connection = _Connection(self._server.accept()[0])
                with self._changed:
                    self.connections.append(connection)
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: _Connection) -> None:
        while connection.receive():
            with self._changed:
                self._changed.notify_all()

    def wait_complete(self) -> None:
        """Wait until every stream is listened to. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._missing(), _SUBSCRIBE_TIMEOUT_S):
                missing = sorted(self._missing())
                raise TimeoutError(f"{len(missing)} streams not subscribed: {missing[:5]}")

    def _missing(self) -> set[str]:
        return self._names.difference(*(connection.names for connection in self.connections))


def _flood(tape: Tape, connection: _Connection) -> None:
    mine = [number for number, name in enumerate(tape.names) if name in connection.names]
    numbers = np.flatnonzero(np.isin(tape.streams, mine)).tolist()
    for start in range(0, len(numbers), _FRAMES_PER_WRITE):
        part = numbers[start : start + _FRAMES_PER_WRITE]
        connection.send(b"".join(map(tape.frame, part)))


def _play(tape: Tape, connections: list[_Connection]) -> tuple[list[int], float]:
    """Send each frame when it is due. Returns when each was sent (ns), and the greatest delay (ms)."""
    owners = [next(c for c in connections if name in c.names) for name in tape.names]
    by_stream = tape.streams.tolist()
    due_ns = tape.due_ns
    sent_ns: list[int] = []
    late_ns = 0
    start_ns = time.monotonic_ns() + 100_000_000
    number = 0
    while number < len(tape):
        due = due_ns[number]
        wait_ns = start_ns + due - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        end = number + 1
        while end < len(tape) and due_ns[end] == due:
            end += 1
        now_ns = time.monotonic_ns()
        late_ns = max(late_ns, now_ns - start_ns - due)
        sent_ns += [now_ns] * (end - number)
        if end == number + 1:
            owners[by_stream[number]].send(tape.frame(number))
        else:
            parts: dict[_Connection, list[bytes]] = {}
            for one in range(number, end):
                parts.setdefault(owners[by_stream[one]], []).append(tape.frame(one))
            for connection, frames in parts.items():
                connection.send(b"".join(frames))
        number = end
    return sent_ns, late_ns / 1e6


def main() -> None:
    """Serve one job."""
    job = jobs.take(jobs.SendJob)
    with Tape(Path(job.tape)) as tape, socket.create_server(("127.0.0.1", 0)) as server:
        clients = _Clients(server, set(tape.names))
        threading.Thread(target=clients.accept, daemon=True).start()
        jobs.send(jobs.Listening(server.getsockname()[1]))
        clients.wait_complete()
        started_s = time.monotonic()
        late_ms = 0.0
        if job.paced:
            sent_ns, late_ms = _play(tape, clients.connections)
            if job.sent_path is not None:
                np.save(job.sent_path, np.array(sent_ns, np.int64))
        else:
            threads = [
                threading.Thread(target=_flood, args=(tape, connection))
                for connection in clients.connections
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        jobs.send(jobs.Sent(len(tape), time.monotonic() - started_s, late_ms))
        jobs.until_dismissed()


if __name__ == "__main__":
    main()
