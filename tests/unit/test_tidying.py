"""What dead processes left at hypervisors is looked for until that was possible once."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import cast

from agent.tidying import AGAIN_S, tidy
from hypervisors.contract import HypervisorHandler, HypervisorType
from stores.errors import Unavailable


class Handler:
    """Fails in these ways, and then does not."""

    type = HypervisorType.XEN

    def __init__(self, *problems: Exception) -> None:
        self.problems = list(problems)
        self.calls = 0

    async def reconcile(self, claimed: Collection[str] = ()) -> None:
        self.calls += 1
        if self.problems:
            raise self.problems.pop(0)


async def test_it_goes_on_until_it_was_possible_once() -> None:
    away, broken, fine = Handler(Unavailable("away")), Handler(RuntimeError("unforeseen"), Unavailable("x")), Handler()
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    await tidy([cast(HypervisorHandler, each) for each in (away, broken, fine)], sleep=sleep)
    assert [away.calls, broken.calls, fine.calls] == [2, 3, 1]
    assert pauses == [AGAIN_S] * 3


async def test_one_that_waits_ends_with_the_agent() -> None:
    task = asyncio.create_task(tidy([cast(HypervisorHandler, Handler(Unavailable("away")))]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert asyncio.all_tasks() == {asyncio.current_task()}
