"""A process that uses a ledger as a pool would, without files, until somebody kills it: `python -m ... FILE SEED`."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from stores.cache import ledger
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger import Facts, Follow, Hit, Leaving, Miss, TakeOver, charge_of
from stores.cache.policy import Grant
from stores.cache.sqlite import SqliteDatabase
from stores.errors import AlreadyExists

POOL = "pool"
UNITS = 20
KEYS = 60  # three times of what the pool holds
SIZE = 4096
LEASE_S = 2.0


class Worker:
    def __init__(self, path: Path, seed: int) -> None:
        self.database = SqliteDatabase(path)
        self.random = random.Random(seed)
        self.owner = f"{seed}-{os.getpid()}"
        self.number = 0

    async def run(self) -> None:
        """Never returns."""
        await self.database.transact(self._begin)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            for _ in range(4):
                tasks.create_task(self._work())

    def _begin(self, tx: Transaction) -> None:
        ledger.open_pool(tx, POOL, UNITS * charge_of(SIZE))
        ledger.register(tx, POOL, self.owner, host="h", boot="b", pid=os.getpid(), lease_s=LEASE_S)

    async def _renew(self) -> None:
        while True:
            await self.database.transact(lambda tx: ledger.renew(tx, POOL, self.owner, LEASE_S))
            await asyncio.sleep(LEASE_S / 5)

    async def _work(self) -> None:
        while True:
            self.number += 1
            name, key = f"{self.owner}-{self.number}", f"key {self.random.randrange(KEYS)}"
            found = await self.database.transact(
                lambda tx, name=name, key=key: ledger.look(  # type: ignore[misc]
                    tx, POOL, key, owner=self.owner, pin=name, reason="read"
                )
            )
            match found:
                case Hit():
                    await self._unpin(name)
                case Follow():
                    await asyncio.sleep(0.001)
                case Leaving(entry, mine) if mine:
                    await self._remove([entry])
                case TakeOver(filling):
                    await self._publish(filling.id, key, name)
                case Miss():
                    await self._fill(name, key)

    async def _fill(self, name: str, key: str) -> None:
        charge = charge_of(SIZE)
        for _ in range(50):
            try:
                answer = await self.database.transact(
                    lambda tx: ledger.request(
                        tx, POOL, charge, reservation=name, owner=self.owner, key=key, waiter=name, wait_s=1.0
                    )
                )
            except AlreadyExists:
                break
            if answer.decision == Grant():
                await self._publish(name, key, name)
                return
            await self._remove(answer.evict)
            await asyncio.sleep(0.001)
        await self.database.transact(lambda tx: ledger.leave(tx, name))

    async def _publish(self, reservation: str, key: str, pin: str) -> None:
        facts = Facts(key, "store", "ref", None, SIZE, None, 1, 1)
        try:
            await self.database.transact(
                lambda tx: ledger.publish(tx, reservation, facts, owner=self.owner, pin=pin, reason="fill")
            )
        except LeaseLost:
            return  # another task of this process was faster to take it over and publish it
        await self._unpin(pin)

    async def _remove(self, entries: tuple[ledger.Entry, ...] | list[ledger.Entry]) -> None:
        gone = [entry.id for entry in entries]
        await self.database.transact(lambda tx: ledger.evicted(tx, POOL, gone, owner=self.owner))

    async def _unpin(self, pin: str) -> None:
        await self.database.transact(lambda tx: ledger.unpin(tx, POOL, pin))


if __name__ == "__main__":
    asyncio.run(Worker(Path(sys.argv[1]), int(sys.argv[2])).run())
