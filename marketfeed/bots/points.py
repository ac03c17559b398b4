"""Points of a measurement of closed trades, read from InfluxDB page by page: ours, and foreign ones."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from marketfeed import schema
from marketfeed.influxdb.admin import InfluxAdmin, InfluxError
from marketfeed.settings.model import InfluxSettings

PAGE: Final = 5_000
Point = Mapping[str, Any]
"""A point: `time` (ms), and tags and fields by name; what it lacks is None."""


class Points:
    """Reads one measurement of a bucket. Raises InfluxError."""

    def __init__(self, admin: InfluxAdmin, influx: InfluxSettings, measurement: str) -> None:
        self._admin = admin
        self._bucket = influx.bucket
        self._from = f'FROM "{measurement}"'

    def of(self, bot: str) -> AsyncIterator[Point]:
        """Our points of a bot, the oldest first."""
        return self._pages(f""" WHERE "bot"::tag = '{bot}'""", ours=True)

    def foreign(self) -> AsyncIterator[Point]:
        """Points that are not ours, the oldest first."""
        return self._pages("", ours=False)

    async def newest_foreign_ms(self) -> int | None:
        """The time of the newest point without the tag `bot`; None: there is none."""
        text = f"""SELECT * {self._from} WHERE "bot"::tag = '' ORDER BY time DESC LIMIT 1"""
        for series in await self._admin.query(text, self._bucket):
            for row in series.values:
                return int(row[series.columns.index("time")])
        return None

    async def field_types(self) -> dict[str, list[str]]:
        """The types that each field has there, of any age."""
        found: dict[str, list[str]] = {}
        for series in await self._admin.query(f"SHOW FIELD KEYS {self._from}", self._bucket):
            for name, held in series.values:
                found.setdefault(str(name), []).append(str(held))
        return found

    async def _pages(self, where: str, *, ours: bool) -> AsyncIterator[Point]:
        offset = 0
        while True:
            text = f"SELECT * {self._from}{where} ORDER BY time ASC LIMIT {PAGE} OFFSET {offset}"
            rows = 0
            for series in await self._admin.query(text, self._bucket):
                for values in series.values:
                    rows += 1
                    point = dict(zip(series.columns, values, strict=True))
                    if is_ours(point) is ours:
                        yield point
            if rows < PAGE:
                return
            offset += PAGE


def is_ours(point: Point) -> bool:
    """Whether a point is one of ours: whatever else stands in the measurement, others wrote."""
    return bool(point.get("bot")) and point.get("position_profit") is not None


def clashes(types: Mapping[str, list[str]]) -> dict[str, str]:
    """Fields of ours that stand there with another type: name -> what it is there."""
    wanted = dict.fromkeys(schema.CLOSED_TRADE_FLOATS, "float") | dict.fromkeys(
        schema.CLOSED_TRADE_TEXTS, "string"
    )
    return {
        name: " and ".join(held)
        for name, held in types.items()
        if name in wanted and any(one != wanted[name] for one in held)
    }


__all__ = ["InfluxError", "Point", "Points", "clashes", "is_ours"]
