"""How many bytes a pool may hold now: the stricter of its limit and of the free space that it is to leave."""

from __future__ import annotations

from bisect import bisect_right

from sqlalchemy import func, select

from stores.cache.database import Transaction
from stores.cache.ledger import BLOCK, charge_of, pool_state
from stores.cache.schema import reservations
from stores.cache.settings import PoolSettings


def capacity_of(charge: int) -> int:
    """The largest object that has room in a reservation of that charge."""
    return BLOCK * (bisect_right(range(charge // BLOCK), charge, key=lambda blocks: charge_of(blocks * BLOCK)) - 1)


def allowed(settings: PoolSettings, *, used: int, arrived: int, free: int, strays: int) -> int:
    """Bytes for entries and reservations together.

    `free`: on the file system now. What has `arrived` of the reservations is not free any more, although it is still reserved.
    `strays`: bytes of files in the directory that are not in the ledger, and so take room from those that are.
    """
    by_limit = settings.limits.limit - strays
    by_free_space = used + arrived + free - settings.leave_free
    return max(0, min(by_limit, by_free_space))


def available(tx: Transaction, settings: PoolSettings, *, free: int, strays: int) -> int:
    """`allowed` by the ledger's numbers. The free bytes have been looked up before the transaction."""
    arrived = select(func.coalesce(func.sum(reservations.c.arrived), 0)).where(reservations.c.pool == settings.name)
    return allowed(
        settings,
        used=pool_state(tx, settings.name).used,
        arrived=int(tx.connection.execute(arrived).scalar_one()),
        free=free,
        strays=strays,
    )
