"""All checks, one after the other, and nothing left of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hypervisors.xen.pool import XenPool
from hypervisors.xen.selftest.checks import CALLS_AND_TRANSFERS, Check, NotTried, Otherwise
from hypervisors.xen.selftest.checks_of_copies import COPIES
from hypervisors.xen.selftest.checks_of_extras import EXTRAS
from hypervisors.xen.selftest.place import Place, found_sr
from stores.errors import StorageError
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted

CHECKS = (*CALLS_AND_TRANSFERS, *COPIES, *EXTRAS)

CLEAN = "clean"
"""The name of the last outcome: whether nothing is left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one check. `seen`: instead of what was claimed, where it is "otherwise"."""

    name: str
    state: Literal["ok", "otherwise", "not tried"]
    seen: str
    means: str = ""


async def selftest(
    pool: XenPool,
    engine: TransferEngine,
    sr: str,
    *,
    iso: str | None,
    tell: Callable[[Outcome], None],
    checks: Sequence[Check] = CHECKS,
    limit_s: float = 600.0,
) -> bool:
    """Whether all that could be tried is as claimed. `tell` gets each outcome as soon as it is known, the last one after all
    was removed. `sr` and `iso` by uuid or name. `limit_s`: for one check.

    Cancelled, it removes what it made, and only then ends. `StorageError` where there is no pool or no SR to try anything with.
    """
    place = Place(
        pool,
        await found_sr(pool, sr),
        await found_sr(pool, iso) if iso is not None else None,
        engine,
        f"storage-agent selftest {pool.fresh()}",
    )
    well = True
    left = ["not known"]

    async def clean() -> None:
        left[:] = await place.clean()

    try:
        for check in checks:
            outcome = await _outcome(check, place, limit_s)
            well &= outcome.state != "otherwise"
            tell(outcome)
    finally:
        await uninterrupted(clean())
        means = "remove it by hand"
        tell(Outcome(CLEAN, "otherwise" if left else "ok", "; ".join(left) or "nothing is left", means if left else ""))
    return well and not left


async def _outcome(check: Check, place: Place, limit_s: float) -> Outcome:
    try:
        async with asyncio.timeout(limit_s):
            return Outcome(check.name, "ok", await check.look(place))
    except NotTried as why:
        return Outcome(check.name, "not tried", str(why))
    except Otherwise as what:
        seen = str(what)
    except StorageError as problem:
        seen = f"{problem.kind}: {problem.message}"
    except TimeoutError:
        seen = f"it took longer than {limit_s:g} s"
    return Outcome(check.name, "otherwise", seen, check.otherwise)
