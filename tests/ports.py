"""Ports of loopback that no other test is given, beside which tests may run."""

import socket


def held_port() -> int:
    """A port that belongs to this process until it ends: for servers that go away and come back.

    The kernel gives it to nobody by itself. Who asks for it by number may listen on it, as asyncio and
    influxd do (SO_REUSEADDR); while nobody listens, connections are refused.
    """
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port: int = holder.getsockname()[1]
    holder.detach()  # open as long as the process lives
    return port
