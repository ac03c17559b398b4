"""Listening on an address of the settings, with an error that names the setting when that fails."""

from aiohttp import web

from marketfeed.errors import ListenError


async def listen(
    runner: web.BaseRunner, host: str, port: int, section: str, backlog: int = 128
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
        cause = error.strerror or str(error)
        text = f"cannot listen on {host} port {port} ({section}.host, {section}.port): {cause}"
        raise ListenError(text) from error
    taken_host, taken_port = runner.addresses[0][:2]
    name = f"[{taken_host}]" if ":" in taken_host else taken_host
    return f"http://{name}:{taken_port}"
