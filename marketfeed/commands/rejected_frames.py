"""Frames that could not be used: reading them out of a journal. Its collector may run meanwhile."""

from pathlib import Path

import msgspec

from marketfeed.journal.view import JournalView


class FrameText(msgspec.Struct, frozen=True):
    r"""A rejected frame as text; a byte that is no UTF-8 stands in it as `\xff`.

    `received_ms` is receive time, on the exchange's clock.
    """

    received_ms: int
    reason: str
    frame: str


def read_rejected(path: Path) -> list[FrameText]:
    """Return the frames kept in the journal at `path`, oldest first. Raises JournalError."""
    view = JournalView(path)
    view.require()
    return [
        FrameText(item.received_ms, item.reason, item.frame.decode("utf-8", "backslashreplace"))
        for item in view.rejected_frames()
    ]
