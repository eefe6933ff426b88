"""Disk images as NBD exports, by qemu-nbd: what a guest would read, or has read at a snapshot, and what changed since.

qemu-nbd rather than qemu-storage-daemon: it alone can open an internal snapshot, and it serves that, a chain of images
and a dirty bitmap together. It is a tool of the agent like any other (`stores.tools.process`): the kernel kills it together
with the agent, so that it needs no other way to end by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from hypervisors.contract import Source
from hypervisors.qemu.nodes import source_node
from hypervisors.qemu.qemu_img import explained
from stores.bridge.server import make_room
from stores.errors import NotFound, Unavailable
from stores.tools.process import RunningTool, ToolFailed, ToolRunner, ToolTimeout

START_S = 300.0
"""To open the image; generous, since a busy NFS server may answer slowly."""

_LOOK_S = 0.01
_CLIENTS = 32
"""Connections at once; more of them wait in the listen queue."""

_DEATH_S = 1.0
"""How long after a broken connection the end of the server shows at most."""


class Exported(NamedTuple):
    """Where an image is served: arguments of `hypervisors.nbd.connect`."""

    socket: Path
    name: str


@asynccontextmanager
async def exported(
    tools: ToolRunner,
    source: Source,
    *,
    snapshot: str | None = None,
    bitmap: str | None = None,
    runtime_dir: Path,
    start_s: float = START_S,
) -> AsyncIterator[Exported]:
    """The disk of an image, in any form that qemu opens, served read-only on a unix socket until the context ends.

    The image's parents are those of `source`, as we recorded them; what images themselves name is not followed. `snapshot`: the
    name of an internal snapshot of a qcow2 image, whose content is served instead of the present one. `bitmap`: the name of
    a persistent dirty bitmap of the image, served as the context `qemu:dirty-bitmap:NAME`, as it is at present.

    The socket is in the folder `nbd` of `runtime_dir`, which only the agent's user may enter, and answers when the context
    begins. When it ends, also by cancellation, process and socket are gone; of an agent killed with -9 the process dies
    with it, and the next start removes the socket with those of the bridge.

    `NotFound` for a snapshot or bitmap that is not there, or that qemu left inconsistent; `ImageLocked` for an image that a
    guest writes; `ToolFailed` with what qemu-nbd says otherwise, `ToolTimeout`, `ToolMissing`; `InvalidReference`,
    `PolicyRefused`. If the server dies, `Unavailable` raised by a reader within is raised with the reason.
    """
    ref = source.presentation.info.ref
    ident = secrets.token_hex(6)
    socket = runtime_dir / "nbd" / f"{ident}.sock"
    ready = socket.with_suffix(".pid")
    make_room(socket)
    argv = ["qemu-nbd", "--read-only", "--persistent", f"--shared={_CLIENTS}", f"--socket={socket}"]
    argv += [f"--export-name={ident}", f"--pid-file={ready}"]
    if snapshot is not None:
        argv += ["--load-snapshot=snapshot.name=" + snapshot.replace(",", ",,")]  # a comma would begin another option
    if bitmap is not None:
        argv += [f"--bitmap={bitmap}"]
    argv += source_node(source).arguments()
    try:
        async with tools.running(argv) as server:
            await _answering(server, ready, ref, start_s)
            try:
                yield Exported(socket, ident)
            except Unavailable as error:
                if (failure := await server.ended(within_s=_DEATH_S)) is None:
                    raise
                raise Unavailable(f"{error.message}; {failure.message}", **failure.details) from error
    finally:
        for leftover in (socket, ready):
            leftover.unlink(missing_ok=True)


async def _answering(server: RunningTool, ready: Path, ref: str, start_s: float) -> None:
    """qemu-nbd writes its pid file when it listens, and no earlier."""
    try:
        async with asyncio.timeout(start_s):
            while not ready.exists():
                if (failure := await server.ended(within_s=_LOOK_S)) is not None:
                    raise _explained(failure, ref)
    except TimeoutError as error:
        raise ToolTimeout(
            f"qemu-nbd was stopped because it had not opened {ref} after {start_s:g} s",
            tool="qemu-nbd",
            deadline_s=start_s,
        ) from error


def _explained(failure: ToolFailed, ref: str) -> Exception:
    said = str(failure.details.get("stderr", ""))
    if "Can't find snapshot" in said or "Bitmap '" in said:
        return NotFound(f"{ref} cannot be exported in that state: {said}", ref=ref)
    return explained(failure)
