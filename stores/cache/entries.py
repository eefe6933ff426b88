"""The files of one pool: unfinished ones, and entries. Everything here blocks.

A fill's file gets the name of an entry, which is used once and never again (`file_of`): removing an entry is therefore safe
whoever else works on the pool. Durable steps come in an order in which every prefix can be told from disk and ledger:

    the file whole and synced -> its description synced -> description renamed -> file renamed -> folders synced -> ledger
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stores.cache.description import DESCRIPTION_LIMIT, Description
from stores.cache.directory import FILL, OBJECTS, QUARANTINE, PoolDirectory, checked
from stores.cache.errors import LeaseLost
from stores.cache.ledger import Entry, Facts, file_of
from stores.errors import IntegrityError, NotFound


def folder_of(file: str) -> str:
    """Where it is while it is not in quarantine."""
    return f"{OBJECTS}/{file[:2]}"


class Entries:
    """The files in `directory`, which is open. Names are checked by it."""

    def __init__(self, directory: PoolDirectory) -> None:
        self._directory = directory

    # ---------------------------------------------------------------------------------------------------- filling

    def path_of_fill(self, fill: str) -> Path:
        return self._directory.path / FILL / f"{checked(fill)}.part"

    def create(self, fill: str) -> Path:
        """The empty file of a fill."""
        with self._directory.touching(fill), self._directory.folder(FILL) as folder:
            self._directory.write_new(f"{checked(fill)}.part", b"", folder)
        return self.path_of_fill(fill)

    def has_fill(self, fill: str) -> bool:
        """Whether the unfinished file is there, as it was made."""
        try:
            with self._directory.touching(fill), self._directory.opened(FILL, f"{fill}.part"):
                return True
        except (NotFound, IntegrityError):
            return False

    def sync_fill(self, fill: str) -> None:
        """What was written into the unfinished file is durable when this returns. `LeaseLost` when it is gone."""
        try:
            with self._directory.touching(fill), self._directory.opened(FILL, f"{fill}.part") as (descriptor, _):
                os.fdatasync(descriptor)
        except NotFound as error:
            raise LeaseLost(f"the unfinished file {fill} was reclaimed by somebody", fill=fill) from error

    def publish(self, made: Description) -> Facts:
        """The unfinished file gets its name and its description: durable and whole when this returns.

        `IntegrityError` when it does not have `made.size` bytes, `LeaseLost` when it is gone.
        """
        pool, part, description = self._directory, f"{made.fill}.part", f"{made.fill}.json"
        try:
            with pool.touching(made.ref, adding=made.size):
                with pool.opened(FILL, part) as (descriptor, status):
                    if status.st_size != made.size:
                        raise IntegrityError(
                            f"{made.ref}: {made.size} bytes were announced and {status.st_size} were written",
                            needed=made.size,
                            seen=status.st_size,
                        )
                    os.fsync(descriptor)
                    status = os.fstat(descriptor)  # some file systems set the time of change when they write
                with pool.folder(FILL) as folder:
                    pool.write_new(description, made.encode(), folder)
                pool.move(FILL, description, folder_of(made.file), f"{made.file}.json")
                pool.move(FILL, part, folder_of(made.file), made.file)
                pool.sync(folder_of(made.file))
                pool.sync(FILL)
        except NotFound as error:
            raise LeaseLost(f"the unfinished file of {made.ref} was reclaimed by somebody", ref=made.ref) from error
        return made.facts(status.st_ino, status.st_mtime_ns)

    def finished(self, key: str, fill: str) -> Facts | None:
        """What a fill published before it was interrupted, durable when this returns; None when it did not come so far."""
        file = file_of(key, fill)
        made = self.describe(file)
        try:
            with self._directory.touching(file), self._directory.opened(folder_of(file), file) as (_, status):
                self._directory.sync(folder_of(file))
        except (NotFound, IntegrityError):
            return None
        if made is None or (made.file, made.size) != (file, status.st_size):
            return None
        return made.facts(status.st_ino, status.st_mtime_ns)

    def discard(self, key: str | None, fill: str) -> None:
        """Removes everything of a fill that did not become an entry. Idempotent.

        The unfinished file goes first: whoever is about to publish it then cannot any more.
        """
        with self._directory.touching(fill):
            self._directory.remove(FILL, f"{fill}.part", f"{fill}.json")
            if key is not None:
                file = file_of(key, fill)
                self._directory.remove(folder_of(file), file, f"{file}.json")

    # ---------------------------------------------------------------------------------------------------- entries

    def path_of(self, entry: Entry) -> Path:
        file = checked(entry.file)
        return self._directory.path / folder_of(file) / file

    def prove(self, entry: Entry) -> str | None:
        """Why the file is not the one that was published, as far as a look at its status tells; None: it is."""
        file = entry.file
        try:
            with self._directory.touching(file), self._directory.opened(folder_of(file), file) as (_, status):
                pass
        except NotFound:
            return "its file is gone"
        except IntegrityError as error:
            return error.message
        for what, now, then in (
            ("size", status.st_size, entry.size),
            ("inode", status.st_ino, entry.inode),
            ("time of change", status.st_mtime_ns, entry.mtime_ns),
        ):
            if now != then:
                return f"its {what} is {now} and was {then}"
        return None

    def describe(self, file: str) -> Description | None:
        """The description of an entry; None where there is none of this layout."""
        try:
            with (
                self._directory.touching(file),
                self._directory.opened(folder_of(file), f"{file}.json") as (descriptor, _),
            ):
                return Description.decode(os.read(descriptor, DESCRIPTION_LIMIT + 1))
        except (NotFound, IntegrityError):
            return None

    def read_past_cache(self, entry: Entry, offset: int, length: int, put: Callable[[memoryview], None]) -> int:
        """Gives up to `length` bytes from `offset` to `put`, and returns how many there were. A multiple of 4 KiB both.

        Past the page cache where the file system can: it sees what is on the disk, and pushes nothing out that is in use.
        """
        with (
            self._directory.touching(entry.file),
            self._directory.opened(folder_of(entry.file), entry.file, direct=True) as (descriptor, _),
            mmap.mmap(-1, length) as aligned,
            memoryview(aligned) as view,
        ):
            count = os.preadv(descriptor, [view], offset)
            with view[:count] as part:
                put(part)
            return count

    def remove(self, entries: Sequence[Entry]) -> None:
        """Removes files and descriptions, in quarantine or not: durable when this returns. Idempotent."""
        changed = set()
        with self._directory.touching():
            for entry in entries:
                file = entry.file
                for folder in (folder_of(file), QUARANTINE):
                    self._directory.remove(folder, file, f"{file}.json")
                    changed.add(folder)
            for folder in sorted(changed):
                self._directory.sync(folder)

    def set_aside(self, entry: Entry) -> None:
        """Moves what did not prove itself to the quarantine. Idempotent."""
        file = entry.file
        with self._directory.touching(file):
            for name in (file, f"{file}.json"):
                try:
                    self._directory.move(folder_of(file), name, QUARANTINE, name)
                except FileNotFoundError:
                    continue  # it is there already, or it never was
            self._directory.sync(QUARANTINE)
            self._directory.sync(folder_of(file))
