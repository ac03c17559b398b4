"""A section of the page, and its tables."""

import msgspec

from tests.proofs.commands import Done

Table = list[list[str]]


class Section(msgspec.Struct, kw_only=True):
    """A section of the page: commands that were run, a table or several, and what failed, in words."""

    title: str
    commands: list[str] = []
    seconds: float = 0.0
    body: list[str] = []
    failures: list[str] = []
    goals: int = 0
    unmet: int = 0

    def took(self, done: Done) -> None:
        """Note a command."""
        self.commands.append(done.command)
        self.seconds += done.seconds

    def failed(self, what: str, done: Done) -> None:
        """Note that a command has failed, with what it printed last."""
        how = "was stopped at its time limit" if done.code is None else f"ended with {done.code}"
        self.failures.append(f"{what} {how}:\n\n```\n{done.words}\n```")


def markdown(rows: Table) -> list[str]:
    """A table; numbers to the right."""
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    right = [
        all(row[at].strip("-") == "" or row[at][:1] in "0123456789-" for row in body)
        for at in range(len(head))
    ]
    right[0] = False
    marks = ["---:" if is_right else "---" for is_right in right]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *body)]
