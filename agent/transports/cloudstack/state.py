"""What a link keeps over restarts: small private files, each replaced as a whole. Blocking; called in threads."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from stores.os_errors import translated

_HOST_ID = "host-id"


class StateDirectory:
    """One link's files, mode 0600 in a directory of mode 0700. Errors are those of `stores.os_errors`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """The file's content; None where there is none."""
        with translated(str(self.path / name)), suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        """Durable when it returns; before that the old content stands."""
        with translated(str(self.path / name)):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self.path / f".{name}.new"
            temporary.unlink(missing_ok=True)  # a killed agent left it
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def remove(self, name: str) -> None:
        """Idempotent."""
        with translated(str(self.path / name)):
            (self.path / name).unlink(missing_ok=True)

    def host_id(self) -> int:
        """What the management server calls this host; -1 while it has not said so, or what it said cannot be read."""
        text = self.read(_HOST_ID) or b""
        return int(text) if text.strip().isdigit() else -1

    def keep_host_id(self, host_id: int) -> None:
        self.write(_HOST_ID, str(host_id).encode())
