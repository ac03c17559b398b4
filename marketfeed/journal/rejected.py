"""Frames that could not be used, as a journal keeps them: the newest, each as far as it is needed."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from marketfeed.records import RejectedFrame

REJECTED_FRAMES_KEPT: Final = 1_000
REJECTED_FRAME_BYTES: Final = 4_096


def write(db: sqlite3.Connection, every: Sequence[RejectedFrame]) -> None:
    """Keep frames, and let go of the oldest. In a transaction."""
    frames = every[-REJECTED_FRAMES_KEPT:]
    if not frames:
        return
    db.executemany(
        "INSERT INTO dead_letter (received, reason, frame) VALUES (?, ?, ?)",
        [(item.received_ms, item.reason, item.frame[:REJECTED_FRAME_BYTES]) for item in frames],
    )
    db.execute(
        "DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?",
        (REJECTED_FRAMES_KEPT,),
    )
