"""A password of hypervisors' hosts, as it is now."""

from __future__ import annotations

from pathlib import Path

from stores.errors import AccessDenied
from stores.secret import Secret
from stores.transfer.threads import Threads

_LIMIT = 4096  # bytes of such a file


async def current(password: Secret | Path) -> Secret:
    """Itself, or what the file holds now, without the end of its line. `AccessDenied` says what is wrong with the file."""
    if isinstance(password, Secret):
        return password
    threads = Threads("password", 1)
    try:
        return await threads.run(lambda: read(password))
    finally:
        threads.close()


def read(file: Path) -> Secret:
    """As `current`. Blocking."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_LIMIT).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise AccessDenied(f"the password of a host cannot be read from {file}: {reason}", file=str(file)) from None
    if not text:
        raise AccessDenied(f"{file} is empty, and needs to hold the password of a host", file=str(file))
    return Secret(text)
