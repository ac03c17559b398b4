"""A local archive: serves what a test puts into it, at the paths that the test names."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from aiohttp import web


class ArchiveServer:
    """Files by their path below the root; `asked` are the paths that were asked for, decoded."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = HTTPStatus.OK

    def put(self, path: str, body: bytes, checksum: str | None = None) -> None:
        """Serve a file and its checksum, the right one by default."""
        name = path.rpartition("/")[2]
        published = hashlib.sha256(body).hexdigest() if checksum is None else checksum
        self.files[path] = body
        self.files[path + ".CHECKSUM"] = f"{published}  {name}\n".encode()

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request."""
        path = request.path.removeprefix("/")
        self.asked.append(path)
        if self.status != HTTPStatus.OK:
            return web.Response(status=self.status)
        body = self.files.get(path)
        return (
            web.Response(status=404, text="<Error/>") if body is None else web.Response(body=body)
        )


@contextlib.asynccontextmanager
async def archive_server() -> AsyncIterator[ArchiveServer]:
    """Run one on a free port."""
    server = ArchiveServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = "http://{}:{}".format(*runner.addresses[0][:2])
    try:
        yield server
    finally:
        await runner.cleanup()
