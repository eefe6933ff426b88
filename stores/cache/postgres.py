"""A ledger in PostgreSQL: for a pool on storage that several hosts share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import create_async_engine

from stores.cache.database import Transaction
from stores.cache.schema import migrate
from stores.errors import AccessDenied, StoreError, Unavailable
from stores.secret import Secret
from stores.uninterrupted import uninterrupted

T = TypeVar("T")
ANSWER_S = 30.0  # one transaction, the wait for its turn included
SESSION = {  # so that a host that vanishes in the middle of a transaction lets go of the pool's lock
    "application_name": "storage-agent",
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "25s",
    "statement_timeout": "28s",
}
MIGRATING = "storage-agent cache ledger"

_TURN = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
_CLOCK = text("SELECT extract(epoch FROM clock_timestamp())")


class PostgresDatabase:
    """A `Database` for one pool. Its leases assume that the server's clock is not set back by more than a lease."""

    def __init__(
        self, url: str, pool: str, *, password: Secret | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        """`url`: `postgresql+asyncpg://user@host/database`, without the password."""
        address = make_url(url)
        self._name = address.render_as_string(hide_password=True)
        if password:
            address = address.set(password=password.reveal())
        self._engine = create_async_engine(
            address,
            pool_size=4,
            max_overflow=4,
            pool_pre_ping=True,
            pool_timeout=ANSWER_S,
            connect_args={"timeout": 10, "command_timeout": ANSWER_S, "server_settings": SESSION},
        )
        self._pool = pool
        self._wall = wall
        self._migrated = False

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        return await uninterrupted(self._run(work))

    async def _run(self, work: Callable[[Transaction], T]) -> T:
        try:
            async with asyncio.timeout(ANSWER_S):
                if not self._migrated:
                    async with self._engine.begin() as connection:
                        await connection.execute(_TURN, {"name": MIGRATING})
                        await connection.run_sync(migrate)
                    self._migrated = True
                async with self._engine.begin() as connection:
                    return await connection.run_sync(self._call, work)
        except (DBAPIError, NoConnectionFree, OSError) as error:
            raise self._typed(error) from None

    def _call(self, connection: Connection, work: Callable[[Transaction], T]) -> T:
        connection.execute(_TURN, {"name": f"{MIGRATING}: {self._pool}"})
        now = connection.execute(_CLOCK).scalar_one()
        return work(Transaction(connection, float(now), self._wall()))

    def _typed(self, error: Exception) -> StoreError:
        original = getattr(error, "orig", None) or error
        if str(getattr(original, "sqlstate", "")).startswith("28"):  # invalid authorization
            return AccessDenied(f"the cache ledger {self._name} refused us: {original}; check user and password")
        return Unavailable(f"the cache ledger {self._name} did not answer: {original or type(original).__name__}")

    async def aclose(self) -> None:
        await self._engine.dispose()
