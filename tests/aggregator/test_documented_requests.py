"""What docs/aggregator.md shows is what is answered: its requests, sent as they stand there."""

import asyncio
import json
import re
from pathlib import Path
from typing import Final

from bot import CountingBot
from running import Running, quick_hash, running, settings

PAGE: Final = (Path(__file__).parents[2] / "docs" / "aggregator.md").read_text(encoding="utf-8")
FLEET: Final = ("fleet", "invented-password")
_LEFT: Final = re.compile(r"decided in [0-9.]+ s")


async def raw(aggregator: Running, request: bytes) -> tuple[int, str]:
    """Send bytes as they are; status and body of the answer."""
    host, port = aggregator.aggregator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: ([0-9]+)", head)
    assert length is not None
    body = await reader.readexactly(int(length[1]))
    writer.close()
    return int(head.split()[1]), body.decode()


def test_the_requests_that_are_shown_are_answered_as_shown(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```http\n(.*?)```", PAGE, re.DOTALL)
    head, _, body = shown.rstrip("\n").partition("\n\n")
    request = head.replace("\n", "\r\n") + "\r\n\r\n" + body
    curls = re.findall(r"\$ (curl [^\n]*(?:\\\n[^\n]*)*?-d '[^']*')\n(\{.*?)```", PAGE, re.DOTALL)
    assert len(curls) == 4

    async def scenario() -> None:
        accounts = [{"username": FLEET[0], "hash": quick_hash(FLEET[1])}]
        async with (
            CountingBot() as bot,
            running(
                settings(tmp_path, {"long": bot.url}, accounts=accounts, window_s=600)
            ) as aggregator,
        ):
            status, answer = await raw(aggregator, request.encode())
            assert status == 200
            assert "signal of feeder 73 for BTC/USDT:USDT long counted, conf=0.85: 1/5" in answer
            for number, (command, wanted) in enumerate(curls):
                (sent,) = re.findall(r"-d '([^']*)'", command)
                headers = dict(re.findall(r"-H '([\w-]+): ([^']*)'", command))
                status, found = await aggregator.send(sent.encode(), auth=FLEET, headers=headers)
                assert status == (422 if '"detail"' in wanted else 200), found
                expected = json.loads(wanted)
                if number == 0:
                    # The same signal as the request before: it counts once.
                    assert found["status"].startswith("repeated: ")
                    continue
                texts = [_LEFT.sub("", json.dumps(one)) for one in (found, expected)]
                assert texts[0] == texts[1]

    asyncio.run(scenario())
