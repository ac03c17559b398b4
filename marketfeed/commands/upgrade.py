"""Taking the journal or the ledger to another schema version."""

import logging
from pathlib import Path

from marketfeed.aggregator.ledger_schema import KIND as LEDGER
from marketfeed.errors import JournalError
from marketfeed.journal.journal import KIND as JOURNAL
from marketfeed.service.systemd import extend_start
from marketfeed.settings.model import Settings
from marketfeed.storage.database import Kind
from marketfeed.storage.reading import inspect
from marketfeed.storage.versions import change_version

log = logging.getLogger("marketfeed")


def kind_and_path(settings: Settings, *, ledger: bool) -> tuple[Kind, Path]:
    """Which durable file is meant."""
    if ledger:
        return LEDGER, settings.aggregator.ledger.path
    return JOURNAL, settings.journal.path


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
