"""SRs of a pool: made, introduced, plugged, looked through, and let go. No content is ever destroyed.

What lies in an SR outlives what XAPI knows of it, but the names and marks of its disks are only with XAPI: SR.forget would lose
them. So an SR with disks of ours is unplugged and stays known; one without any is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from hypervisors.xen.errors import XapiFailure, of_disk
from hypervisors.xen.finding import Finder
from hypervisors.xen.longer import carried_out
from hypervisors.xen.marks import Sort, about_documents, sort_of
from hypervisors.xen.plans import MADE, Plan, plan_of
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository
from stores.errors import AlreadyExists, InvalidReference, NotFound, StorageError
from stores.secret import MASK, Secret
from stores.to import PrimaryDataStoreTO
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_UUID = re.compile(r"<UUID>\s*([0-9a-fA-F-]{36})\s*</UUID>")
"""In what SR.probe answers: `<SRlist><SR><UUID>...` (`srlist_toxml` of SM)."""


async def provided(to: PrimaryDataStoreTO, pools: Sequence[XenPool], *, make: bool) -> None:
    """The SR is there, plugged on every host that can have it, and has been scanned. With `make` one that is not known is
    introduced, if the storage holds one of that uuid, else made, and called so; `AlreadyExists` where that would wipe others.

    Interrupted, it is finished by the next time.
    """
    try:
        sr = await Finder(to.uuid, pools).found()
    except NotFound as unknown:
        if not make:
            raise
        plan = plan_of(to)
        if plan is None:
            raise NotFound(
                f"{unknown.message}; one of type {to.poolType} is not made here, only {', '.join(MADE)}: make it, and name it"
                " so",
                sr=to.uuid,
            ) from None
        sr = await _made(to, _pool_for(to, pools), plan)
    if make:
        await _known_to_hosts(sr, to)
    with _saying(sr.name):
        await _plugged(sr)
        await carried_out(sr.pool, "SR.scan", sr.handle)


async def released(to: PrimaryDataStoreTO, pools: Sequence[XenPool]) -> None:
    """No host has it plugged. `ImageLocked` while a disk of it is attached, and then all have it as before. Idempotent."""
    try:
        sr = await Finder(to.uuid, pools).found()
    except NotFound:
        return
    ours = [disk.name for disk in await sr.disks() if sort_of(disk) is not Sort.FOREIGN or about_documents(disk)]
    with _saying(sr.name):
        await _unplugged(sr)
        if ours:
            _log.warning("sr unplugged but not forgotten: it has disks of ours", sr=sr.uuid, disks=len(ours))
        else:
            await uninterrupted(sr.pool.call("SR.forget", sr.handle))


# ------------------------------------------------------------------------------------------------------------- making


def _pool_for(to: PrimaryDataStoreTO, pools: Sequence[XenPool]) -> XenPool:
    named = (to.details or {}).get("pool", Secret("")).reveal()
    found = [pool for pool in pools if named in ("", pool.settings.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(pool.settings.name for pool in pools)
    raise InvalidReference(
        f"which pool of hosts is to have the SR {to.uuid}? Say it in details.pool: {names}", sr=to.uuid
    )


async def _made(to: PrimaryDataStoreTO, pool: XenPool, plan: Plan) -> Repository:
    host = (await _hosts_for(to, pool, plan))[0]
    with _saying(to.uuid, plan.password):
        there = _UUID.findall(str(await _probed(pool, host, plan))) if plan.probed else []
        if to.uuid in there:
            told: tuple[Any, ...] = (to.uuid, to.name or to.uuid, "", plan.kind, plan.content, plan.shared, {})
            handle = str(await uninterrupted(pool.call("SR.introduce", *told)))
        elif there and plan.wipes:
            raise AlreadyExists(
                f"making an SR there would wipe what is there: SR {', '.join(there)}; to use that one, name its uuid as the"
                " pool's",
                sr=to.uuid,
                seen=there,
            )
        else:
            handle = await carried_out(
                pool,
                "SR.create",
                host,
                plan.config(),
                0,
                to.uuid,
                to.name or "",
                plan.kind,
                plan.content,
                plan.shared,
                {},
            )
        return Repository.of(pool, handle, await pool.call("SR.get_record", handle))


async def _probed(pool: XenPool, host: str, plan: Plan) -> str:
    return await carried_out(pool, "SR.probe", host, plan.config(), plan.kind, {})


async def _known_to_hosts(sr: Repository, to: PrimaryDataStoreTO) -> None:
    """Each host has a PBD of it: one that was introduced comes without any."""
    try:
        plan = plan_of(to)
    except InvalidReference:
        plan = None
    if plan is None:
        return  # it was made by somebody else, who knows how it is reached
    pbds = await sr.pool.call("SR.get_PBDs", sr.handle)
    known = {str(await sr.pool.call("PBD.get_host", pbd)) for pbd in pbds}
    if known and not plan.shared:
        return
    with _saying(sr.name, plan.password):
        for host in await _hosts_for(to, sr.pool, plan):
            if host not in known:
                record = {"host": host, "SR": sr.handle, "device_config": plan.config(), "other_config": {}}
                await uninterrupted(sr.pool.call("PBD.create", record))


async def _hosts_for(to: PrimaryDataStoreTO, pool: XenPool, plan: Plan) -> list[str]:
    """All hosts, the coordinator first; of a local SR the one."""
    hosts: dict[str, dict[str, Any]] = await pool.call("host.get_all_records")
    if not plan.shared:
        return [_named_host(to, hosts)]
    (handle,) = await pool.call("pool.get_all")
    first = str(await pool.call("pool.get_master", handle))
    return sorted(hosts, key=lambda host: host != first)


def _named_host(to: PrimaryDataStoreTO, hosts: Mapping[str, Mapping[str, Any]]) -> str:
    """Of an SR that one host has for itself."""
    fields = ("uuid", "name_label", "hostname", "address")
    found = [
        handle for handle, record in hosts.items() if not to.host or to.host in [record[field] for field in fields]
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(record["name_label"]) for record in hosts.values())
    raise InvalidReference(
        f"a local SR is of one host; name it as the pool's host: {names}", sr=to.uuid, seen=to.host or ""
    )


# ------------------------------------------------------------------------------------------------------------ plugging


async def _plugged(sr: Repository) -> None:
    """A host that cannot have it now is told in the log, unless none can."""
    problems: list[StorageError] = []
    count = 0
    for pbd in await sr.pool.call("SR.get_PBDs", sr.handle):
        try:
            if not await sr.pool.call("PBD.get_currently_attached", pbd):
                await carried_out(sr.pool, "PBD.plug", pbd)
            count += 1
        except XapiFailure as problem:
            _log.warning("sr not plugged on a host", sr=sr.uuid, pbd=pbd, code=problem.code)
            problems.append(problem)
    if problems and not count:
        raise problems[0]


async def _unplugged(sr: Repository) -> None:
    """On all hosts, or on none."""
    done: list[str] = []
    try:
        for pbd in await sr.pool.call("SR.get_PBDs", sr.handle):
            if await sr.pool.call("PBD.get_currently_attached", pbd):
                done.append(pbd)
                await carried_out(sr.pool, "PBD.unplug", pbd)
    except BaseException:
        await uninterrupted(_plugged_again(sr, done))
        raise


async def _plugged_again(sr: Repository, pbds: Sequence[str]) -> None:
    for pbd in pbds:
        try:
            await sr.pool.surely("PBD.plug", pbd)
        except StorageError as problem:
            _log.warning("sr left unplugged on a host", sr=sr.uuid, pbd=pbd, error=problem.message)


@contextmanager
def _saying(name: str, password: Secret | None = None) -> Iterator[None]:
    """What XAPI says no with, without the password that was sent: storage managers like to quote what they were told."""
    try:
        yield
    except XapiFailure as problem:
        told = of_disk(_without(problem, password), name)
        raise told from None


def _without(problem: XapiFailure, password: Secret | None) -> XapiFailure:
    if not password:
        return problem
    hidden = password.reveal()
    params = [param.replace(hidden, MASK) for param in problem.params]
    return type(problem)(problem.message.replace(hidden, MASK), code=problem.code, params=params)
