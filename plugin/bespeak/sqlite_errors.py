"""What the SQLite files share: the code of an error, and waiting while another process holds the file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
RETRY_S = 0.005


def primary_code(error: Exception) -> str:
    """SQLite's primary error code, such as SQLITE_BUSY for SQLITE_BUSY_SNAPSHOT."""
    return "_".join(getattr(error, "sqlite_errorname", "SQLITE_ERROR").split("_")[:2])


def empty_log(connection: sqlite3.Connection, timeout_s: float) -> bool:
    """Writes the log into the file and empties it; whether that was possible within the time.

    SQLite waits for readers by itself, but not for another connection that empties the log.
    """
    end = time.monotonic() + timeout_s
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > end:
            return False
        time.sleep(RETRY_S)
    return True


def retry_while_busy(act: Callable[[], object], timeout_s: float) -> None:
    """SQLite itself does not wait while another process switches the file to WAL. Raises sqlite3.OperationalError."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            act()
            return
        except sqlite3.OperationalError as error:
            if primary_code(error) not in BUSY or time.monotonic() > end:
                raise
            time.sleep(RETRY_S)
