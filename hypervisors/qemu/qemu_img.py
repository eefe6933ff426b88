"""qemu-img, one method for each use. Every image is named with its driver; nothing is ever probed.

Options follow qemu-img(1). Conversion bypasses the page cache where the file system lets it (`-t none`), writes out of order
(`-W`) with 8 coroutines: with the defaults it is several times slower, and was seen to stall on remote sources.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypervisors.contract import ImageLocked
from hypervisors.images.formats import DRIVERS
from hypervisors.qemu.nodes import Node
from stores.contract import Progress
from stores.errors import DeviceFault, IntegrityError, NoSpace
from stores.to import ImageFormat, ProvisioningType
from stores.tools.process import ToolFailed, ToolRunner

QUICK_S = 300.0
"""Deadline of what only touches metadata; generous, since a busy NFS server may answer slowly."""

_COROUTINES = "8"

_PREALLOCATION: Mapping[tuple[ImageFormat, ProvisioningType], str] = {
    (ImageFormat.QCOW2, ProvisioningType.SPARSE): "metadata",
    (ImageFormat.QCOW2, ProvisioningType.FAT): "falloc",
    (ImageFormat.RAW, ProvisioningType.FAT): "falloc",
}
"""How CloudStack's provisioning types are written for qemu; all others are `off`."""

_LEAKS_ONLY = 3
"""Exit status of `qemu-img check` for clusters that nothing refers to: wasted space, whole content."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes: as a guest sees the image, and as it lies on disk."""

    virtual: int
    physical: int


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap of a qcow2 image. `recording`: what is written is noted in it. `broken`: something that did not know of
    it, or died, has written, so that it tells nothing any more."""

    recording: bool
    broken: bool


@dataclass(frozen=True, slots=True)
class History:
    """What a qcow2 image holds besides its content, by name."""

    snapshots: frozenset[str] = frozenset()
    bitmaps: Mapping[str, Bitmap] = field(default_factory=dict)


class QemuImg:
    """Stateless; every method is one process, gone when the method ends."""

    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner

    async def convert(
        self,
        source: Node,
        target: Path,
        target_format: ImageFormat,
        *,
        size: int,
        direct_source: bool,
        direct_target: bool,
        progress: Progress,
    ) -> None:
        """The content of the node `source` into the file `target`, without its backing chain. `size` is the virtual size.
        Direct is past the page cache: only where `direct_io_works`."""
        into = ["-t", _cache(direct_target), "-O", DRIVERS[target_format], *source.arguments(), str(target)]
        await self._convert(["-T", _cache(direct_source), *into], size, progress)

    async def convert_into(
        self,
        source: Node,
        target: Node,
        *,
        size: int,
        direct_source: bool,
        blank: bool,
        progress: Progress,
        direct_target: bool = True,
    ) -> None:
        """The same into a disk that is there, and at least as large; what it has beyond is not touched. `blank`: it reads as
        zeroes so far."""
        zero = ["--target-is-zero"] if blank else []
        into = ["-n", *zero, "-t", _cache(direct_target), "-O", str(target.options["driver"])]
        *objects, filename = target.arguments()
        nodes = [*objects, *source.arguments(), filename]
        await self._convert(["-T", _cache(direct_source), *into, *nodes], size, progress)

    async def check(self, node: Node) -> None:
        """`IntegrityError` unless the image's own metadata is consistent. Leaked clusters are no fault."""
        try:
            # It reads all metadata, which grows with the image: as long as the command itself may take.
            await self._run(["qemu-img", "check", "-q", *node.arguments()], deadline_s=None)
        except ToolFailed as error:
            if error.details.get("exit_code") == _LEAKS_ONLY:
                return
            raise IntegrityError(
                f"the image's metadata is inconsistent, qemu-img check says: {_text(error)}; nothing was published"
            ) from error

    async def create(
        self,
        path: Path,
        image_format: ImageFormat,
        size: int,
        provisioning: ProvisioningType,
        *more: str,
    ) -> None:
        """An empty image. `more`: arguments."""
        preallocation = _PREALLOCATION.get((image_format, provisioning), "off")
        argv = ["qemu-img", "create", "-q", "-f", DRIVERS[image_format], "-o", f"preallocation={preallocation}"]
        await self._run([*argv, *more, str(path), str(size)])

    async def create_linked(self, path: Path, size: int, backing: str, backing_format: ImageFormat) -> None:
        """A qcow2 image over `backing`, a name relative to `path`'s directory. `-u`: qemu is not to open it by that name."""
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", DRIVERS[backing_format], "-b", backing]
        await self._run([*argv, str(path), str(size)])

    async def resize(self, node: Node, size: int, *, shrink: bool) -> None:
        await self._run(["qemu-img", "resize", "-q", *(["--shrink"] if shrink else []), *node.arguments(), str(size)])

    async def sizes(self, node: Node, *, running: bool = False) -> Sizes:
        """`running`: also of an image that a running guest writes (`-U`); otherwise that is `ImageLocked`."""
        argv = ["qemu-img", "info", *(["-U"] if running else []), "--output=json"]
        info = json.loads(await self._run([*argv, *node.arguments()]))
        virtual = int(info["virtual-size"])
        return Sizes(
            virtual, physical=int(info.get("actual-size", virtual))
        )  # a storage that does not say has all of it

    async def history(self, node: Node, *, running: bool = False) -> History:
        """`ImageLocked` while a running guest writes the image; `running`: then as it was when the guest opened it, with all
        bitmaps `broken`."""
        argv = ["qemu-img", "info", *(["-U"] if running else []), "--output=json"]
        info = json.loads(await self._run([*argv, *node.arguments()]))
        bitmaps = info.get("format-specific", {}).get("data", {}).get("bitmaps", [])
        return History(
            frozenset(found["name"] for found in info.get("snapshots", [])),
            {
                found["name"]: Bitmap(recording="auto" in found["flags"], broken="in-use" in found["flags"])
                for found in bitmaps
            },
        )

    async def bitmap(self, node: Node, name: str, *actions: str) -> None:
        """What `actions` say (`--add`, `--merge SOURCE`, `--enable`, ...), in one step of the image."""
        await self._run(["qemu-img", "bitmap", *actions, *node.arguments(), name])

    async def snapshot(self, node: Node, name: str, action: str) -> None:
        """`-c` creates the internal snapshot, `-a` makes it the image's content, `-d` deletes it."""
        await self._run(["qemu-img", "snapshot", "-q", action, name, *node.arguments()])

    async def required(self, node: Node, target_format: ImageFormat) -> int:
        """The most bytes that a conversion of `node` will write."""
        argv = ["qemu-img", "measure", "--output=json", "-O", DRIVERS[target_format]]
        return int(json.loads(await self._run([*argv, *node.arguments()]))["required"])

    async def _convert(self, options: list[str], size: int, progress: Progress) -> None:
        done = 0

        def advance(fraction: float) -> None:
            nonlocal done
            progress.advance(int(fraction * size) - done)
            done = int(fraction * size)

        await self._run(
            ["qemu-img", "convert", "-p", "-W", "-m", _COROUTINES, *options],
            deadline_s=None,  # as long as the command itself may take
            on_progress=advance,
        )

    async def _run(
        self,
        argv: list[str],
        *,
        deadline_s: float | None = QUICK_S,
        on_progress: Callable[[float], None] | None = None,
    ) -> bytes:
        try:
            return (await self._runner.run(argv, deadline_s=deadline_s, on_progress=on_progress)).stdout
        except ToolFailed as error:
            raise explained(error) from error


def _cache(direct: bool) -> str:
    return "none" if direct else "writeback"


def explained(error: ToolFailed) -> Exception:
    """What qemu-img said, as one of our errors where an operator can tell more from that."""
    text = _text(error)
    if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
        return NoSpace(f"the destination ran full: {text}; free space or use another pool", said=text)
    if os.strerror(errno.EIO) in text or os.strerror(errno.EROFS) in text or os.strerror(errno.ESTALE) in text:
        return DeviceFault(f"a disk or mount failed: {text}; check it", said=text)
    if '"write" lock' in text or '"consistent read" lock' in text:
        return ImageLocked(f"another process has the image open, its virtual machine perhaps: {text}", said=text)
    return error


def _text(error: ToolFailed) -> str:
    return str(error.details.get("stderr", ""))


def direct_io_works(path: Path) -> bool:
    """Whether the file system takes O_DIRECT; without it qemu refuses cache mode `none`. Blocking."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
