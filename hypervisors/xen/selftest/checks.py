"""What checks are, and those of calls and transfers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from itertools import count

from hypervisors.xen.errors import MAP_DUPLICATE_KEY, XapiFailure
from hypervisors.xen.hosts import Host, known
from hypervisors.xen.marks import Disk
from hypervisors.xen.selftest.place import SIZE, Parts, Place, content
from stores.contract import KiB, MiB
from stores.errors import StorageError


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the agent takes for granted.

    `claim`: what it is; `otherwise`: what it means if it is not so; `look` says in a few words what was seen, or raises
    `Otherwise`, `NotTried`, or whatever the agent itself would have failed with.
    """

    name: str
    claim: str
    otherwise: str
    look: Callable[[Place], Awaitable[str]]


class Otherwise(Exception):
    """What was seen instead."""


class NotTried(Exception):
    """Why this pool cannot show it."""


def pattern(seed: int, length: int) -> bytes:
    """The same bytes for the same seed, no two sectors alike."""
    sectors = range(-(-length // 512))
    return b"".join(hashlib.shake_128(b"%d %d" % (seed, sector)).digest(512) for sector in sectors)[:length]


SPARSE: Parts = {
    0: pattern(1, 4 * KiB),
    6 * MiB - 512: pattern(2, 64 * KiB),  # across a border of blocks
    SIZE - 512: pattern(3, 512),
}
"""Data at both ends, and two long holes."""


def expect(seen: bytes, wanted: bytes, what: str) -> None:
    """`Otherwise` with the first place where they differ."""
    if seen == wanted:
        return
    if len(seen) != len(wanted):
        raise Otherwise(f"{what}: {len(seen)} bytes instead of {len(wanted)}")
    first = next(at for at in count(0, 512) if seen[at : at + 512] != wanted[at : at + 512])
    raise Otherwise(f"{what}: the sector at {first} is another one")


# -------------------------------------------------------------------------------------------------------------- calls


async def _logged_in(place: Place) -> str:
    """And which hosts there are."""
    records = await place.pool.call("host.get_all_records")
    said = [f"{one['address']} {_version(one['software_version'])}".strip() for one in records.values()]
    return f"{len(said)} hosts: {', '.join(sorted(said))}"


def _version(told: dict[str, str]) -> str:
    return " ".join(told[key] for key in ("product_brand", "product_version", "xapi") if key in told)


async def _task(place: Place) -> str:
    asked = SIZE + 512
    task = await place.made("Async.VDI.create", place.record(asked))
    handle = await (await place.pool.connection()).tasks.result(task)
    await place.settled(task)
    record = await place.pool.call("VDI.get_record", handle)
    size = int(record["virtual_size"])
    if size < asked:
        raise Otherwise(f"a disk of {size} bytes, where {asked} were asked for")
    kind = "numbers" if isinstance(record["virtual_size"], int) else "text"
    return f"{asked} bytes became {size}; integers come as {kind}"


async def _duplicate(place: Place) -> str:
    disk = await place.disk(2 * MiB)
    key = "storage-agent:selftest"
    await place.pool.call("VDI.add_to_other_config", disk.handle, key, "first")
    try:
        await place.pool.call("VDI.add_to_other_config", disk.handle, key, "second")
    except XapiFailure as problem:
        if problem.code != MAP_DUPLICATE_KEY:
            raise
        return f"{problem.code}"
    held = await place.pool.call("VDI.get_other_config", disk.handle)
    raise Otherwise(f"no error, and the key holds {held.get(key)!r}")


# ---------------------------------------------------------------------------------------------------------- transfers


async def _early(place: Place) -> str:
    disk = await place.disk(2 * MiB)
    asked: list[bool] = []

    async def body() -> AsyncGenerator[bytes, None]:
        asked.append(True)  # which it is not before the host has answered
        yield bytes(12)

    try:
        await place.send(disk, body())
    except StorageError as problem:
        if asked:
            raise
        raise Otherwise(problem.message) from problem
    return "200 came first"


async def _chunked(place: Place) -> str:
    disk = await place.disk()
    backwards = dict(sorted(SPARSE.items(), reverse=True))
    await place.write(disk, {0: pattern(9, 512)})  # which is written over
    await place.write(disk, backwards)
    wanted = content(disk.virtual_size, SPARSE)
    expect(await place.read(disk), wanted, "read back")
    return f"sha256 {hashlib.sha256(wanted).hexdigest()[:16]} read back"


async def _announced(place: Place) -> str:
    disk = await place.disk()
    await place.write(disk, SPARSE, announced=2 * disk.virtual_size)
    expect(await place.read(disk), content(disk.virtual_size, SPARSE), "read back")
    return f"{2 * disk.virtual_size} bytes announced"


async def _refused(place: Place) -> str:
    disk = await place.disk(2 * MiB)
    try:
        await place.write(disk, {disk.virtual_size: pattern(1, 512)})
    except XapiFailure as problem:
        return problem.code
    raise Otherwise("data beyond the end of a disk were taken, and the task succeeded")


async def _redirected(place: Place) -> str:
    host = await _blind(place)
    if host is None:
        raise NotTried("every host that was named sees the SR")
    disk = await place.disk()
    await place.write(disk, SPARSE, host)
    expect(await place.read(disk), content(disk.virtual_size, SPARSE), "read back")
    return f"by way of {host}"


async def _blind(place: Place) -> Host | None:
    """A host that may be talked to and does not see the SR."""
    pool = place.pool
    pbds = [await pool.call("PBD.get_record", pbd) for pbd in await pool.call("SR.get_PBDs", place.sr.handle)]
    seeing = {pbd["host"] for pbd in pbds if pbd["currently_attached"]}
    hosts = await pool.call("host.get_all_records")
    addresses = [str(record["address"]) for handle, record in hosts.items() if handle not in seeing]
    return next((host for each in addresses if (host := known(each, pool.settings.hosts))), None)


async def _vhd(place: Place) -> str:
    disk = await place.disk()
    await place.write_vhd(disk, SPARSE)
    wanted = content(disk.virtual_size, SPARSE)
    expect(await place.read(disk), wanted, "read back as raw")
    exported = await place.read_vhd(disk)
    if exported.virtual_size != disk.virtual_size:
        raise Otherwise(f"the export has {exported.virtual_size} bytes, and the disk {disk.virtual_size}")
    expect(content(exported.virtual_size, exported.parts), wanted, "read back as VHD")
    return f"{exported.present} of {exported.virtual_size} bytes travelled"


async def _cancelled(place: Place) -> str:
    disk, begun = await place.disk(), asyncio.Event()

    async def body() -> AsyncGenerator[bytes, None]:
        yield (0).to_bytes(8, "little") + MiB.to_bytes(4, "little")
        yield bytes(64 * KiB)
        begun.set()
        await asyncio.Event().wait()

    sending = asyncio.create_task(place.send(disk, body()), name="selftest transfer")
    waiting = asyncio.create_task(begun.wait(), name="selftest wait")
    try:
        await asyncio.wait({sending, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sending.cancel()
        waiting.cancel()
        await asyncio.wait({sending, waiting})
    if not sending.cancelled():
        await sending
    return await _detached(place, disk)


async def _detached(place: Place, disk: Disk) -> str:
    told = place.pool.settings
    turns = max(1, round(told.grace_s / told.pause_s))
    for turn in range(turns):
        if not await place.sr.attached(disk):
            return f"detached from the control domain after about {turn * told.pause_s:.0f} s"
        await place.pool.sleep(told.pause_s)
    raise Otherwise(f"the disk is still attached to the control domain after {told.grace_s:g} s")


CALLS_AND_TRANSFERS = (
    Check(
        "login",
        "XAPI speaks JSON-RPC, shows the certificate that is trusted, and lets the user in",
        "nothing works: see the message",
        _logged_in,
    ),
    Check(
        "task",
        "the end of a task comes as an event, with a reference; VDI.create rounds sizes up",
        "whatever takes long is never known to have ended, or disks are too small for their images",
        _task,
    ),
    Check(
        "duplicate",
        "add_to_other_config refuses a key that is there",
        "locks do not lock: let one agent alone use the pool",
        _duplicate,
    ),
    Check(
        "answer",
        "the answer to a PUT comes before the first byte of its body, whatever stands before XAPI",
        "nothing can be imported: a proxy waits for the body; name the hosts' own addresses",
        _early,
    ),
    Check(
        "import",
        "chunked PUT without a length: frames in any order, written over, ended by an empty one",
        "imported disks are not their images: do not use this pool",
        _chunked,
    ),
    Check(
        "length",
        "chunked PUT with a Content-Length larger than the body: the empty frame ends it all the same",
        "nothing by itself, as the agent announces no length; a proxy that wants one cannot stand before this pool",
        _announced,
    ),
    Check(
        "failure",
        "a task fails when not all was written, whatever HTTP said",
        "a damaged import goes unnoticed: do not use this pool",
        _refused,
    ),
    Check(
        "redirect",
        "a host that does not see an SR sends its clients to one that does, by an address that was named",
        "transfers fail where that host is asked: name every host by the address that it goes by in the pool",
        _redirected,
    ),
    Check(
        "vhd",
        "a VHD goes in and out whole, to its last sector",
        "backups cannot be trusted: do not take any from this SR",
        _vhd,
    ),
    Check(
        "cancel",
        "a closed connection ends its transfer, and the host detaches the disk",
        "cancelled imports leave disks attached to the control domain, which the agent then unplugs",
        _cancelled,
    ),
)
