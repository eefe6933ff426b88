"""Small JSON files with secrets in them, in a directory that nobody but this process's user may enter.

For what has to outlive the process although it must not be in a journal: how a store knows us.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stores.errors import AccessDenied
from stores.os_errors import translated
from stores.secret import Secret
from stores.to import DataStoreTO

_TO: TypeAdapter[DataStoreTO] = TypeAdapter(DataStoreTO)
_SUFFIX = ".json"
_TEMPORARY = ".new"
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PrivateFiles:
    """Of one directory, by names that are safe in file names. All methods block, and raise `StoreError`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """Makes the directory with mode 0700 where it is missing, but not its parent. `AccessDenied` when others may look into
        it."""
        with translated(str(self.directory)):
            with suppress(FileExistsError):
                os.mkdir(self.directory, 0o700)
            status = os.stat(self.directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise AccessDenied(
                f"{self.directory} holds credentials: it must be a directory of user {os.geteuid()} with mode 700",
                directory=str(self.directory),
            )

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Name and text of each file. Whoever decodes one keeps the text out of errors and logs."""
        with translated(str(self.directory)):
            for path in sorted(self.directory.iterdir()):
                if path.suffix == _SUFFIX:
                    yield path.stem, path.read_bytes()

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Durable and whole when it returns, in place of what was there; or as before."""
        path = self._path(name)
        temporary = path.with_suffix(_TEMPORARY)
        with translated(str(path)):
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            with os.fdopen(os.open(temporary, _MAKE, 0o600), "wb") as file:
                file.write(json.dumps(content).encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
            self._sync()

    def remove(self, name: str) -> None:
        """Durable when it returns. Idempotent."""
        path = self._path(name)
        with translated(str(path)):
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._sync()

    def _path(self, name: str) -> Path:
        return self.directory / (name + _SUFFIX)

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def with_secrets(to: DataStoreTO) -> dict[str, Any]:
    """The TO as JSON knows it, its secrets in the clear: for `PrivateFiles` only."""
    found: dict[str, Any] = _revealed(to)
    return found


def target_of(found: Any) -> DataStoreTO:
    """The TO again. `ValueError` for anything else; it may quote what it could not read."""
    return _TO.validate_python(found)


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, dict):
        return {name: _revealed(each) for name, each in value.items()}
    if hasattr(type(value), "model_fields"):
        return {name: _revealed(getattr(value, name)) for name in type(value).model_fields}
    return value
