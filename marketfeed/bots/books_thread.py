"""The books on a thread of their own."""

from pathlib import Path

from marketfeed.bots.books import Books
from marketfeed.bots.books_schema import KIND
from marketfeed.storage.file_thread import FileThread


class BooksThread(FileThread[Books]):
    """The thread of the books at `path`; entering raises what `Books.open` raises.

    One file for as long as this runs: a damaged one is set aside at the start, and the bots fill another.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(KIND, path)

    def _open(self) -> None:
        # A predecessor that was killed may take a moment to go.
        self._file = books = Books.open(self.path, wait_lock_s=2.0)
        self.generation += 1
        self.next_seq = books.next_seq
        self._look_beside()
