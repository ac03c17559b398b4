"""How a journal that was set aside stands, for `/status`."""

import msgspec

PURE = True


class AsideReport(msgspec.Struct, frozen=True):
    """A journal that was set aside, and what has been taken of it by now.

    `state`: `waiting`, `reading`, `drained` (all that can be read was taken) or `unreadable` (nothing of it
    could be read; it is looked at again hourly). `lost` counts the places that could not be read, and the
    rows that cannot be; `lost_places` names the first of them.
    """

    path: str
    bytes: int
    state: str
    candles: int
    rows: int
    lost: int
    trouble: str
    lost_places: list[str] = []
