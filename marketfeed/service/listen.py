"""Listening on an address of the settings, with an error that names the setting when that fails."""

import asyncio
import errno
import os
import socket

from aiohttp import web

from marketfeed.errors import ListenError
from marketfeed.service.connections import Connections


async def listen(
    runner: web.BaseRunner,
    host: str,
    port: int,
    section: str,
    backlog: int = 128,
    connections: Connections | None = None,
) -> str:
    """Set `runner` up and listen; returns the URL, with the port taken where `port` is 0.

    `section` is where config.yaml has `host` and `port`; `connections` bounds those who connect:
    an application has it put before its routes, the handler of a bare server calls its `begin` and `end`.
    Raises ListenError; the runner is clean then.
    """
    if connections is not None and isinstance(runner, web.AppRunner):
        connections.add_to(runner.app)
    await runner.setup()
    if connections is None:
        site: web.BaseSite = web.TCPSite(runner, host, port, backlog=backlog)
    else:
        site = _BoundedSite(runner, host, port, backlog, connections)
    try:
        await site.start()
    except BaseException as error:
        await runner.cleanup()
        if not isinstance(error, OSError):
            raise
        cause = _cause(error)
        text = f"cannot listen on {host} port {port} ({section}.host, {section}.port): {cause}"
        raise ListenError(text) from error
    taken_host, taken_port = runner.addresses[0][:2]
    name = f"[{taken_host}]" if ":" in taken_host else taken_host
    return f"http://{name}:{taken_port}"


def _cause(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    # The event loop's own words name the address once more.
    words = os.strerror(error.errno)
    return f"{words}: another process has this port" if error.errno == errno.EADDRINUSE else words


class _BoundedSite(web.BaseSite):
    """A listening socket whose connections are those of `connections`."""

    def __init__(
        self, runner: web.BaseRunner, host: str, port: int, backlog: int, connections: Connections
    ) -> None:
        super().__init__(runner, backlog=backlog)
        self._host, self._port, self._connections = host, port, connections

    @property
    def name(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        await super().start()
        assert self._runner.server is not None  # noqa: S101 - BaseSite demands it
        self._server = await asyncio.get_running_loop().create_server(
            self._connections.over(self._runner.server),
            self._host,
            self._port,
            backlog=self._backlog,
        )
