"""Books: the ledger in memory and the journal on disk, kept in step."""

import logging
from collections.abc import Callable, Sequence

from anole_memd.core.ledger import Ledger
from anole_memd.core.records import Record
from anole_memd.errors import JournalFull
from anole_memd.journal import Journal

log = logging.getLogger(__name__)

_MAX_NOTED = 256


class Books:
    """The only place where the ledger changes.

    What somebody is promised is on disk before it is true (commit). What is given back is true at
    once, and on disk with the next commit or soon after (note): a memd that is killed in between
    finds a region in its ledger that nobody holds, and gives it back then. So giving back never
    fails for want of disk space.
    """

    def __init__(self, ledger: Ledger, journal: Journal) -> None:
        self.ledger = ledger
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change."""
        self._journal = journal
        self._noted: list[Record] = []
        self._is_behind = False

    def commit(self, records: Sequence[Record]) -> None:
        """Write records to disk, then make them true.

        Raises:
            JournalFull: there is no room on the disk; nothing has changed.
        """
        self._catch_up()
        self._journal.append([*self._noted, *records])
        self._noted.clear()
        self.ledger.apply(records)
        self.on_change()

    def note(self, records: Sequence[Record]) -> None:
        """Make records true that can be found out again if they are lost."""
        self.ledger.apply(records)
        self._noted += records
        if len(self._noted) > _MAX_NOTED:
            self.flush()
        self.on_change()

    def flush(self) -> None:
        """Write down what was noted; where the disk is full, later."""
        if not self._noted and not self._is_behind:
            return
        try:
            self._catch_up()
            if self._noted:
                self._journal.append(self._noted)
        except JournalFull as fault:
            if not self._is_behind:
                log.error("%s; what is given back meanwhile is written down later", fault)
            self._is_behind = True
        self._noted.clear()

    def _catch_up(self) -> None:
        """Write the whole ledger anew, where it is time, or something was left out."""
        if not self._is_behind and not self._journal.is_long:
            return
        try:
            self._journal.rewrite()
        except JournalFull:
            if self._is_behind:
                raise
            return
        self._noted.clear()
        self._is_behind = False

    def close(self) -> None:
        """Write down what was noted and let go of the file."""
        self.flush()
        self._journal.close()
