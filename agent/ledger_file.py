"""A cache ledger in PostgreSQL whose URL, password included, is in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from stores.cache.database import Database, Transaction
from stores.errors import AccessDenied
from stores.secret import Secret

T = TypeVar("T")
_LIMIT = 4096  # bytes of such a file


class LedgerFromFile:
    """A `Database` that reads its URL when it is first needed: an explanation needs no ledger, and a file that cannot be read
    makes the pool sick until it can, and not the agent."""

    def __init__(self, file: Path, pool: str) -> None:
        self._file = file
        self._pool = pool
        self._database: Database | None = None

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        if self._database is None:
            url, password = await asyncio.to_thread(read_url, self._file)
            from stores.cache.postgres import PostgresDatabase

            self._database = self._database or PostgresDatabase(url, self._pool, password=password)
        return await self._database.transact(work)

    async def aclose(self) -> None:
        if self._database is not None:
            await self._database.aclose()


def read_url(file: Path) -> tuple[str, Secret | None]:
    """The URL without the password, for asyncpg, and the password. `AccessDenied` says what is wrong with the file."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_LIMIT).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise AccessDenied(f"the URL of a cache ledger cannot be read from {file}: {reason}", file=str(file)) from None
    try:
        parts = urlsplit(text)
        user, password, host, database = parts.username, parts.password, parts.hostname, parts.path.strip("/")
        place = parts.netloc.rpartition("@")[2]
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("postgresql", "postgres") or not database:
        raise AccessDenied(  # not chained, and without the text: it may hold a password
            f"{file} needs to hold postgresql://user:password@host/database", file=str(file)
        )
    named = f"{user}@{place}" if user else place
    url = urlunsplit(("postgresql+asyncpg", named, parts.path, parts.query, ""))
    return url, Secret(unquote(password)) if password else None
