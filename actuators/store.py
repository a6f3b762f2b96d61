"""journal.db as a file: opened safely, checked, migrated, set aside when it is no sound database.

WAL with synchronous=FULL: a transaction that has ended is on disk, or is so with the next one where the caller says
that it may wait. Readers (`read_only`) work beside the writer, and when there is none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from actuators import state_dir
from actuators.state_dir import JournalError

NAME = "journal.db"
PAGES_PER_CHECKPOINT = 4000
"""The WAL is moved into the database in quiet moments (Store.checkpoint); this is the bound for busy ones, 16 MB."""
BUSY_MAX = 500
"""After so many transactions it is moved also while there are more."""
BUSY_S = 2.0

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE changes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        t_tai_ns INTEGER NOT NULL, tai_known INTEGER NOT NULL, t_ns INTEGER NOT NULL, boot_ns INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        tunable TEXT NOT NULL, scope TEXT NOT NULL,
        netns INTEGER NOT NULL, netns_ino INTEGER NOT NULL, netns_name TEXT NOT NULL,
        decider TEXT NOT NULL, old INTEGER NOT NULL, new INTEGER NOT NULL,
        why TEXT NOT NULL, evidence TEXT NOT NULL,
        state TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '', ended_tai_ns INTEGER NOT NULL DEFAULT 0,
        advice TEXT NOT NULL DEFAULT '', repeats INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX changes_standing ON changes (boot_id, tunable, netns) WHERE state IN ('intent', 'trial', 'confirmed');
    CREATE UNIQUE INDEX changes_advice ON changes (advice) WHERE advice <> '';
    CREATE TABLE keys (
        boot_id TEXT NOT NULL, tunable TEXT NOT NULL, netns INTEGER NOT NULL,
        netns_ino INTEGER NOT NULL, netns_name TEXT NOT NULL,
        original INTEGER NOT NULL, last_written INTEGER,
        PRIMARY KEY (boot_id, tunable, netns)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE holds (
        boot_id TEXT NOT NULL, tunable TEXT NOT NULL, netns INTEGER NOT NULL,
        why TEXT NOT NULL, since_tai_ns INTEGER NOT NULL, until_tai_ns INTEGER NOT NULL,
        PRIMARY KEY (boot_id, tunable, netns)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE boots (boot_id TEXT PRIMARY KEY, machine TEXT NOT NULL) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE changes ADD COLUMN twin TEXT NOT NULL DEFAULT '';
    ALTER TABLE changes ADD COLUMN twin_value INTEGER NOT NULL DEFAULT 0;
    """,
)
"""MIGRATIONS[n] brings a journal of version n (PRAGMA user_version) to n + 1; version 0 is an empty file."""


class Store:
    """The database, open for writing. Every sqlite3.Error comes out as JournalError with one line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.set_aside: Path | None = None
        """Where a corrupt database went, if there was one."""
        self.fresh = False
        """It was empty, or set aside."""
        self._corrupt = False
        self._written = 0
        """Transactions since the last checkpoint."""
        self._seen = -1
        """How many of them the last call of checkpoint() saw. The first one is at the start, where nobody waits."""
        state_dir.file(self.path)
        try:
            self._db = self._open()
            self._file = self.path.lstat()
        except JournalError:
            if not self._corrupt:
                raise
            self.set_aside = self._aside()
            state_dir.file(self.path)
            self._db = self._open()
            self._file = self.path.lstat()
            # A number from an old log line must never undo another change.
            with self.transaction() as db:
                db.execute("INSERT INTO sqlite_sequence VALUES ('changes', ?)", (int(time.time()),))

    def read(self, sql: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._errors():
            return self._db.execute(sql, tuple(values)).fetchall()

    @contextlib.contextmanager
    def transaction(self, sync: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk at its end. Take no other inside. Without sync: written at its end, and on disk with
        the next one or with a checkpoint, whichever comes first; its order among the others is kept."""
        self._look()
        self._written += 1
        with self._errors():
            # In WAL mode NORMAL differs from FULL in nothing but this one sync (pagerCommit, sqlite3WalFrames).
            self._db.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")

    def checkpoint(self) -> None:
        """To be called now and then. Once there was no transaction since the last call, or there were very many, the
        WAL is moved into the database, as far as readers let us, and begun anew: whoever is the first to write
        afterwards would have to wait for the sync of its header."""
        self._look()
        quiet, self._seen = self._seen in (-1, self._written), self._written
        if not self._written or not (quiet or self._written > BUSY_MAX):
            return
        self.read("PRAGMA wal_checkpoint(PASSIVE)")
        with self.transaction() as db:
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        self._written = self._seen = 0

    def close(self) -> None:
        """Close; the last one to do so also checkpoints."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _look(self) -> None:
        # SQLite would go on writing to what nobody will find.
        if not state_dir.is_still(self.path, self._file):
            raise JournalError(f"{self.path}: has been removed")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            self._corrupt = self._corrupt or _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            raise JournalError(f"{self.path}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        with self._errors():
            db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            try:
                self._check(db)
            except (sqlite3.Error, JournalError):
                db.close()
                raise
            return db

    def _check(self, db: sqlite3.Connection) -> None:
        [(found,)] = db.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            self._corrupt = True
            raise JournalError(f"{self.path}: {found}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {PAGES_PER_CHECKPOINT}")
        self.fresh = _migrate(db, self.path)

    def _aside(self) -> Path:
        to = self.path.with_name(f"{NAME}.corrupt-{time.time_ns()}")
        try:
            for end in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{end}").rename(f"{to}{end}")
        except OSError as error:
            raise JournalError(f"{self.path}: corrupt, and cannot be set aside: {error.strerror}") from None
        self._corrupt = False
        return to


def _migrate(db: sqlite3.Connection, path: Path) -> bool:
    """Bring it to our version. Returns whether it was empty."""
    [(version,)] = db.execute("PRAGMA user_version").fetchall()
    if version > len(MIGRATIONS):
        raise JournalError(f"{path}: written by a newer trimtab (version {version}; known are up to {len(MIGRATIONS)})")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        # One transaction each: a crash leaves the old version or the new one.
        db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
    return bool(version == 0)


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def read_only(folder: Path) -> sqlite3.Connection:
    """The journal for reading, whether or not its writer runs. Raises JournalError (errno ENOENT: none there)."""
    path = folder / NAME
    try:
        path.stat()
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}", error.errno or 0) from None
    if not os.access(path, os.R_OK):
        # SQLite's word for it does not tell it from a broken disk.
        raise JournalError(f"{path}: {os.strerror(errno.EACCES)}", errno.EACCES)
    try:
        return _reader(path, "mode=ro")
    except sqlite3.Error as error:
        # A WAL needs its -shm file even for reading; where that cannot be made (a read-only file system, a full one)
        # the database is read as it stands.
        if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR):
            raise JournalError(f"{path}: {error}") from None
    try:
        return _reader(path, "immutable=1")
    except sqlite3.Error as error:
        raise JournalError(f"{path}: {error}") from None


def _reader(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?{how}", uri=True, timeout=BUSY_S)
    try:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version == len(MIGRATIONS):
            return db
        # Its writer, an older or a newer trimtab, may still run: an older one's is brought to our version in a copy.
        copy = sqlite3.connect(":memory:", isolation_level=None)
        try:
            db.backup(copy)
            _migrate(copy, path)
        except (sqlite3.Error, JournalError):
            copy.close()
            raise
        db.close()
        return copy
    except (sqlite3.Error, JournalError):
        db.close()
        raise
