"""Who may touch which object now: many readers or one writer for each name, in the order in which they asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Claim:
    """One object that a command touches, and whether it tolerates others at the same object meanwhile."""

    key: str
    exclusive: bool = True


@dataclass(eq=False, slots=True)
class _Ticket:
    """One holder, or one in the queue: `missing` of its names are still in its way."""

    wants: dict[str, bool]  # name -> exclusive
    missing: int
    granted: asyncio.Future[None]


@dataclass(slots=True)
class _Name:
    exclusive: bool = False  # whether the present holder is the only one
    holders: set[_Ticket] = field(default_factory=set)
    waiting: dict[_Ticket, bool] = field(default_factory=dict)  # in order of arrival

    def admit(self) -> Iterable[_Ticket]:
        """Let in from the head of the queue whoever fits beside the holders."""
        while self.waiting:
            ticket, exclusive = next(iter(self.waiting.items()))
            if self.holders and (exclusive or self.exclusive):
                return
            del self.waiting[ticket]
            self.holders.add(ticket)
            self.exclusive = exclusive
            yield ticket


class Locks:
    """Locks by name, for one event loop.

    A holder queues for all its names in one step, so that two holders meet in the same order in every queue: that is the
    one global order that rules deadlocks out. Nobody overtakes, hence nobody starves. Names cost memory only while used.
    """

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}

    def __len__(self) -> int:
        """Names held or waited for."""
        return len(self._names)

    @asynccontextmanager
    async def hold(self, claims: Iterable[Claim]) -> AsyncIterator[None]:
        """All of the claims, until the context ends. Cancelled while it waits, it leaves every queue."""
        ticket = self._enqueue(claims)
        try:
            if ticket.missing:
                await ticket.granted
            yield
        finally:
            self._leave(ticket)

    def _enqueue(self, claims: Iterable[Claim]) -> _Ticket:
        wants: dict[str, bool] = {}
        for claim in claims:
            wants[claim.key] = wants.get(claim.key, False) or claim.exclusive
        ticket = _Ticket(wants, len(wants), asyncio.get_running_loop().create_future())
        for key, exclusive in wants.items():
            self._names.setdefault(key, _Name()).waiting[ticket] = exclusive
            self._admit(key)
        return ticket

    def _leave(self, ticket: _Ticket) -> None:
        for key in ticket.wants:
            name = self._names[key]
            name.holders.discard(ticket)
            name.waiting.pop(ticket, None)
            self._admit(key)

    def _admit(self, key: str) -> None:
        name = self._names[key]
        for ticket in name.admit():
            ticket.missing -= 1
            if not ticket.missing and not ticket.granted.done():
                ticket.granted.set_result(None)
        if not name.holders:
            del self._names[key]
