"""Where a ledger's transactions run: SQLite beside the entries, or PostgreSQL for a pool that several hosts share.

Both run the same synchronous functions of a SQLAlchemy connection, so that no `await` sits inside a decision. Transactions of
one pool come one after the other, in all processes: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock named after the
pool, taken before anything is read.

`Transaction.now` is the clock of leases, in seconds from an arbitrary point. It is the same for all who share the database
and does not follow changes of this host's wall clock: CLOCK_BOOTTIME on one host (a reboot ends every owner anyway, and is
told by the boot id), the server's `clock_timestamp()` across hosts. It is read when the transaction's turn has come, so a
lease never ends before the local time at which its renewal was asked for plus its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from stores.errors import DeviceFault

T = TypeVar("T")


class LedgerDamaged(DeviceFault):
    """The ledger's file is not a database any more. The objects beside it are copies, but for those that were staged and that
    no store has yet: save these, then remove the pool's directory."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a ledger function works with: valid until it returns."""

    connection: Connection
    now: float  # seconds, of the clock of leases
    wall: float  # seconds since the epoch; for ages, never for leases


class Database(Protocol):
    """Runs ledger transactions of one pool."""

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """`work` in one durable transaction: committed when this returns, undone when it raises.

        Cancelled, the transaction has happened or not, as a whole; whoever must know chooses the ids of what it makes, and
        undoes that by them: a transaction asked for after the cancellation comes after it.

        Raises what `work` raises, and `Unavailable`, `NoSpace`, `DeviceFault` or `LedgerDamaged` of the database itself.
        """
        ...

    async def aclose(self) -> None:
        """Finishes what was asked for, and lets go of the database. Idempotent."""
        ...
