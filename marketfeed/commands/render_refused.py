"""How `marketfeed signals --refused` shows posts that were refused."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.text import Text

from marketfeed.aggregator.refused_posts import RefusedPost

_WIDTHS = (19, 6, 6, 34, 6)
_DIGEST_SHOWN = 12
"""Hex digits of a body's SHA-256 that a line shows; JSON has all."""


def refused_plain(post: RefusedPost) -> dict[str, object]:
    """A refused post as JSON shows it: the SHA-256 of its last body in hex, null when none was read."""
    return {**msgspec.structs.asdict(post), "digest": post.digest.hex() or None}


def show_refused(posts: Sequence[RefusedPost], *, title: bool = False) -> None:
    """Print refused posts, a line for those that are alike, in fixed columns: more may follow."""
    console = Console(soft_wrap=True, highlight=False)
    if title:
        heads = ("last (UTC)", "times", "status", "sender", "feeder")
        console.print(Text(_line(*heads, "why"), style="bold"))
    for post in posts:
        fixed = (str(post.times), str(post.status), post.who(), post.feeder)
        console.print(Text(_line(_time(post.last_ms), *fixed, _why(post))))


def _line(*cells: str) -> str:
    *fixed, text = cells
    widths = zip(fixed, _WIDTHS, strict=True)
    return "  ".join(cell.ljust(width) for cell, width in widths) + "  " + text


def _why(post: RefusedPost) -> str:
    more = [post.request] if post.request else []
    if post.times > 1:
        more.append(f"first {_time(post.first_ms)}")
    if post.digest:
        more.append(
            f"body of {post.body_bytes:,} bytes, sha256 {post.digest.hex()[:_DIGEST_SHOWN]}…"
        )
    return f"{post.sentence} ({'; '.join(more)})" if more else post.sentence


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
