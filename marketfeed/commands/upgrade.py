"""Taking the journal or the ledger to another schema version."""

import logging
from pathlib import Path

import typer

from marketfeed.aggregator.ledger_tables import KIND as LEDGER
from marketfeed.errors import JournalError
from marketfeed.journal.journal import KIND as JOURNAL
from marketfeed.service.systemd import extend_start
from marketfeed.settings.model import Settings
from marketfeed.storage.database import Kind
from marketfeed.storage.reading import inspect
from marketfeed.storage.versions import change_version, versions

log = logging.getLogger("marketfeed")


def kind_and_path(settings: Settings, *, ledger: bool) -> tuple[Kind, Path]:
    """Which durable file is meant."""
    if ledger:
        return LEDGER, settings.aggregator.ledger.path
    return JOURNAL, settings.journal.path


def version_of(kind: Kind, asked: int | None) -> int:
    """The version that was asked for, the newest if none was. Raises typer.BadParameter."""
    if asked is None:
        return kind.version
    possible = versions(kind)
    if asked not in possible:
        raise typer.BadParameter(
            f"--to: found {asked}, expected {' or '.join(map(str, possible))} for the {kind.name}"
        )
    return asked


def upgrade_at_start(path: Path) -> None:
    """Take a journal to the newest version before it is collected into; one that cannot be stays as it is."""
    try:
        found = inspect(JOURNAL, path, writing=True)
        # None yet: a fresh one is of the newest version.
        if found is None or found.version in {0, JOURNAL.version}:
            return
        extend_start()
        change_version(JOURNAL, path, JOURNAL.version)
    except JournalError as error:
        log.warning("journal not upgraded, going on with it as it is error=%r", str(error))
