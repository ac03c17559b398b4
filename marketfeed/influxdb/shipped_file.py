"""What shipping asks of a durable file and of its writer: a journal's, or the aggregator's ledger's."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from marketfeed.storage.ranges import Acknowledged

T = TypeVar("T")


class Shipped(Protocol):
    """What shipping notes in a durable file: a journal, or the aggregator's ledger."""

    def shipped(self, target: str) -> Acknowledged:
        """What `target` has acknowledged."""

    def note_shipped(self, target: str, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Save ranges (measurement, first, last) that `target` has acknowledged."""

    def forget_if_demanded(self, target: str) -> bool:
        """Forget what `target` has acknowledged if all is to be shipped again; return whether it is."""

    def put_aside(self, target: str, refused: Iterable[tuple[str, str]], refused_ms: int) -> int:
        """Keep lines that `target` refused; returns how many older ones are gone by that."""


class Documents(Protocol):
    """Where a journal's documents are kept, also over a journal that takes another one's place."""

    async def save_document(self, name: str, body: bytes, saved_ms: int) -> None:
        """Keep a document under `name`."""

    async def load_document(self, name: str) -> tuple[bytes, int] | None:
        """A document and when it was saved, None if there is none."""


class Writer(Protocol):
    """The writer of such a file; `generation` rises when another file takes its place."""

    path: Path

    @property
    def generation(self) -> int:
        """Which file it is, counted from 1."""

    @property
    def next_seq(self) -> int:
        """The number that the next stored row gets."""

    async def call(self, function: Callable[[Shipped], T]) -> T:
        """Run `function` on the file, in the writer's thread."""
