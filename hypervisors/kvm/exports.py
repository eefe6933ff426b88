"""Disk images as NBD exports, by qemu-nbd: what a guest would read, or has read at a snapshot, and what changed since.

qemu-nbd rather than qemu-storage-daemon: it alone can open an internal snapshot, and it serves that, a chain of images
and a dirty bitmap together. It is a tool of the agent like any other (`hypervisors.process`): the kernel kills it together
with the agent, so that it needs no other way to end by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from hypervisors.contract import ImageSpec, Source
from hypervisors.images.formats import json_filename
from hypervisors.kvm.nodes import source_node
from hypervisors.kvm.qemu_img import explained
from hypervisors.process import RunningTool, ToolFailed, ToolRunner, ToolTimeout
from stores.bridge.server import make_room
from stores.contract import LocalPath, ObjectInfo
from stores.errors import NotFound, Unavailable
from stores.to import ImageFormat

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
    path: Path,
    image_format: ImageFormat,
    *,
    backing: Sequence[tuple[Path, ImageFormat]] = (),
    snapshot: str | None = None,
    bitmap: str | None = None,
    runtime_dir: Path,
    start_s: float = START_S,
) -> AsyncIterator[Exported]:
    """The disk of an image served read-only on a unix socket, until the context ends.

    `backing`: its parents as we recorded them, nearest first; what the images themselves name is not followed. `snapshot`: the
    name of an internal snapshot of a qcow2 image, whose content is served instead of the present one. `bitmap`: the name of
    a persistent dirty bitmap of the image, served as the context `qemu:dirty-bitmap:NAME`, as it is at present.

    The socket is in the folder `nbd` of `runtime_dir`, which only the agent's user may enter, and answers when the context
    begins. When it ends, also by cancellation, process and socket are gone; of an agent killed with -9 the process dies
    with it, and the next start removes the socket with those of the bridge.

    `NotFound` for a snapshot or bitmap that is not there, or that qemu left inconsistent; `ImageLocked` for an image that a
    guest writes; `ToolFailed` with what qemu-nbd says otherwise, `ToolTimeout`, `ToolMissing`; `InvalidReference`,
    `PolicyRefused`. If the server dies, `Unavailable` raised by a reader within is raised with the reason.
    """
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
    argv += [json_filename(source_node(_source(path, image_format, backing)))]
    try:
        async with tools.running(argv) as server:
            await _answering(server, ready, path, start_s)
            try:
                yield Exported(socket, ident)
            except Unavailable as error:
                if (failure := await server.ended(within_s=_DEATH_S)) is None:
                    raise
                raise Unavailable(f"{error.message}; {failure.message}", **failure.details) from error
    finally:
        for leftover in (socket, ready):
            leftover.unlink(missing_ok=True)


def _source(path: Path, image_format: ImageFormat, backing: Sequence[tuple[Path, ImageFormat]]) -> Source:
    layers = [
        Source(LocalPath(layer, ObjectInfo(layer.name, None)), ImageSpec(layer_format))
        for layer, layer_format in [(path, image_format), *backing]
    ]
    return Source(layers[0].presentation, layers[0].spec, tuple(layers[1:]))


async def _answering(server: RunningTool, ready: Path, path: Path, start_s: float) -> None:
    """qemu-nbd writes its pid file when it listens, and no earlier."""
    try:
        async with asyncio.timeout(start_s):
            while not ready.exists():
                if (failure := await server.ended(within_s=_LOOK_S)) is not None:
                    raise _explained(failure, path)
    except TimeoutError as error:
        raise ToolTimeout(
            f"qemu-nbd was stopped because it had not opened {path} after {start_s:g} s",
            tool="qemu-nbd",
            deadline_s=start_s,
        ) from error


def _explained(failure: ToolFailed, path: Path) -> Exception:
    said = str(failure.details.get("stderr", ""))
    if "Can't find snapshot" in said or "Bitmap '" in said:
        return NotFound(f"{path.name} cannot be exported in that state: {said}", ref=path.name)
    return explained(failure)
