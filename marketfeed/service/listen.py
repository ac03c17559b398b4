"""Listening on an address of the settings, with an error that names the setting when that fails."""

import errno
import os
import socket

from aiohttp import web

from marketfeed.errors import ListenError


async def listen(
    runner: web.AppRunner, host: str, port: int, section: str, backlog: int = 128
) -> str:
    """Set `runner` up and listen; returns the URL, with the port taken where `port` is 0.

    `section` is where config.yaml has `host` and `port`. Raises ListenError; the runner is clean then.
    """
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=backlog)
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
