"""The files of the pages, served from memory."""

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Final

from aiohttp import web

_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "txt": "text/plain",
}
SHARED: Final = {
    **{
        f"/page/{name}": f"static/{name}"
        for name in ("page.css", "icon.svg", "live.js", "panels.js", "text.js")
    },
    # What browsers ask for beside answers that name no icon, such as `/status`.
    "/favicon.ico": "static/icon.svg",
}
"""What every page needs."""


class Files:
    """Files of this package by the path at which they are served: `{"/": "static/collector.html"}`."""

    def __init__(self, files: Mapping[str, str]) -> None:
        home = resources.files("marketfeed.page")
        self._found = {
            path: _File(name, (home / name).read_bytes()) for path, name in files.items()
        }

    def add_to(self, app: web.Application) -> None:
        """Serve them."""
        for path in self._found:
            app.router.add_get(path, self._get)

    async def _get(self, request: web.Request) -> web.Response:
        file = self._found[request.path]
        # Asked for again at every visit: a page must not be older than the service that it speaks to.
        headers = {"Cache-Control": "no-cache", "ETag": f'"{file.digest}"'}
        if any(tag.value == file.digest for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=file.body, content_type=file.content_type, charset="utf-8", headers=headers
        )


class _File:
    def __init__(self, name: str, body: bytes) -> None:
        self.body = body
        self.digest = hashlib.sha256(body).hexdigest()[:32]
        self.content_type = _TYPES.get(name.rpartition(".")[2], _TYPES["txt"])
