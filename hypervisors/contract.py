"""READ SECOND. What a hypervisor handler is: what it needs of a store, and how it reads and writes images.

The verbs themselves (lock order, negotiation, publication, what an answer says) are written once, in
`hypervisors.operations`; a handler only declares and does what is peculiar to its hypervisor. Verbs that a hypervisor has no
way to do keep their default here, which refuses with `OperationUnsupported`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from stores.contract import Kind, PendingWrite, Presentation, Progress
from stores.errors import Retry, StorageError
from stores.secret import Secret
from stores.to import ImageFormat, PrimaryDataStoreTO, ProvisioningType
from stores.transfer.digests import Checksum

if TYPE_CHECKING:  # which stand on what is defined here
    from hypervisors.guests import Guests
    from hypervisors.primary import Pool
    from hypervisors.snapshotting import Snapshots


class HypervisorType(StrEnum):
    KVM = "KVM"
    XEN = "XenServer"
    HYPERV = "Hyperv"


class HandlerError(StorageError):
    """Base of what goes wrong between a handler and its hypervisor or its tools."""


class OperationUnsupported(HandlerError):
    """This hypervisor's handler does not do that."""


class ImageRefused(HandlerError):
    """The image gate says no: details carry `rule`, and what was found."""


class SizeRefused(HandlerError):
    """The size asked for would cut data off: details carry `asked` and `least` in bytes."""


def refuse_cut(least: int, asked: int | None) -> None:
    """`SizeRefused` if `asked` is too small for a disk of `least` bytes."""
    if asked is not None and asked < least:
        raise SizeRefused(
            f"the source has {least} bytes and the volume is to have {asked}: that would cut data off; ask for at least"
            f" {least}",
            asked=asked,
            least=least,
        )


class ImageInUse(HandlerError):
    """Other images are built on this one: details carry `children`."""


class ImageLocked(HandlerError):
    """Another process, a running guest perhaps, has the image open. Nothing was changed."""

    retry = Retry.YES


class Operation(StrEnum):
    """What an acceptance is asked for. Those that read a source are rows of the table in docs/hypervisors.md."""

    COPY_TEMPLATE = "copy template to primary"
    LINK_TEMPLATE = "make a linked clone of a template"
    ATTACH_ISO = "attach ISO"
    COPY_VOLUME = "copy volume to primary"
    EXPORT_VOLUME = "copy volume to image store"
    BACK_UP = "back up a snapshot"
    RESTORE = "restore a backup"
    CREATE = "create volume"
    SNAPSHOT = "make a snapshot"


OF_THE_POOL = (
    Operation.CREATE,
    Operation.SNAPSHOT,
    Operation.BACK_UP,
    Operation.EXPORT_VOLUME,
    Operation.LINK_TEMPLATE,
)
"""Those whose source can only be in a pool."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image as the commands and our records know it, never as its own bytes claim.

    Of a source, `format` None means that the command does not say; `accepts` and `explain` see that, `copy` never does: by
    then the gate has decided from the bytes. Of a target, `virtual_size` is the least it shall have, None the source's.
    `compression`: gzip, bzip2, xz, zstd. `sequential`: the store can only give the object in order. `device`: of a
    target, that it is no file but one of `stores.contract.DEVICES`. `encryption`: of a source, luks; `passphrase`: what opens
    it, and what a target shall be encrypted with.
    """

    format: ImageFormat | None
    virtual_size: int | None = None
    compression: str | None = None
    sequential: bool = False
    device: bool = False
    encryption: str | None = None
    passphrase: Secret | None = None


@dataclass(frozen=True, slots=True)
class Accepts:
    """Kinds in order of preference, and why: the reason is shown by `explain`. `random`: ranges are read in any order, so that
    a digest has to follow the reads."""

    kinds: tuple[Kind, ...]
    because: str
    random: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """An opened image to read."""

    presentation: Presentation
    spec: ImageSpec
    backing: tuple[Source, ...] = ()  # nearest parent first, from our own records


@dataclass(frozen=True, slots=True)
class Written:
    """What a finished image is: recorded at once, and passed to every tool ever after."""

    format: ImageFormat
    virtual_size: int
    physical_size: int
    digests: dict[str, str] = field(default_factory=dict)  # algorithm -> hex, of the source object's bytes
    encryption: str | None = None  # as `ImageSpec.encryption`


Scratch: TypeAlias = Callable[[], AbstractAsyncContextManager[PendingWrite]]
"""Opens a temporary file in the target's store, gone when the context ends, for what cannot be read in one pass."""


@dataclass(frozen=True, slots=True)
class HostPool:
    """Hosts that a handler talks to, as it found them last. `coordinator`: the one that it is logged in at; `problem`: why it
    is at none. Neither where it was not needed yet."""

    name: str
    coordinator: str | None
    problem: str | None


class HypervisorHandler(abc.ABC):
    """One hypervisor. Stateless apart from its connections; every method may be cancelled and then leaves nothing behind
    that the surrounding `PendingWrite` does not remove."""

    type: ClassVar[HypervisorType]
    native_format: ClassVar[ImageFormat]
    """The format a volume gets when the command does not say."""

    encrypts: ClassVar[bool] = False
    """Whether its volumes can be encrypted (`ImageSpec.passphrase`)."""

    def pool(self, to: PrimaryDataStoreTO) -> Pool | None:
        """The primary store, where the hypervisor itself keeps its images and what is noted of them. None where they are what
        the resolver makes of `to`: files or devices of this host. Contacts nothing. Closed with the handler."""
        return None

    @abc.abstractmethod
    def accepts(self, operation: Operation, source: ImageSpec, target: ImageSpec) -> Accepts:
        """What the handler can read the source from, in order of preference."""

    @abc.abstractmethod
    def fills(self, operation: Operation, target: ImageSpec) -> Accepts:
        """What the handler can write the target through."""

    def keeps_bytes(self, source: ImageSpec, target: ImageSpec) -> bool:
        """Whether the source's bytes, expanded where they are compressed, already are the target."""
        return source.format is not None and source.format == target.format

    async def estimate(self, source: Source, target: ImageSpec) -> int | None:
        """The most bytes that `copy` will need in the target's store, as far as that is known beforehand."""
        return None

    @abc.abstractmethod
    async def copy(
        self,
        source: Source,
        target: PendingWrite,
        spec: ImageSpec,
        *,
        scratch: Scratch,
        checksum: Checksum | None,
        progress: Progress,
    ) -> Written:
        """Write the source's content into `target` in `spec.format`, without its backing chain and, if `spec.virtual_size`
        is larger, grown to that. The caller commits.

        The caller has let the head of an untrusted source pass the gate; a source that can only be read in order, or that
        is compressed, is inspected again by the handler once it is whole and before a tool opens it.

        `SizeRefused` where the source turns out to be larger than `spec.virtual_size`. What is written may be a little larger
        than asked, where the hypervisor rounds up.

        `checksum` is of the source object's bytes. A handler through which they all pass computes that digest, refuses a
        difference with `ChecksumMismatch`, and returns the digest; where a tool reads the source, the caller sees to it.
        """

    async def create(
        self, target: PendingWrite, spec: ImageSpec, provisioning: ProvisioningType, *, backing: Source | None = None
    ) -> Written:
        """An empty volume, or with `backing` a linked clone of it."""
        raise self._unsupported("create")

    async def resize(self, source: Source, new_size: int, *, shrink: bool) -> Written:
        """Change the virtual size in place. `SizeRefused` for shrinking, unless told; `OperationUnsupported` where told and the
        hypervisor cannot."""
        raise self._unsupported("resize")

    async def measure(self, source: Source) -> Written:
        """Sizes of an existing image, by its recorded format."""
        raise self._unsupported("measure")

    @property
    def snapshots(self) -> Snapshots:
        """What it does for snapshots and backups."""
        raise self._unsupported("make snapshots")

    @property
    def guests(self) -> Guests:
        """What it does with virtual machines."""
        raise self._unsupported("attach anything to a virtual machine")

    async def provide(self, to: PrimaryDataStoreTO, *, make: bool) -> None:
        """Where the hypervisor itself keeps the pool: all its hosts use it when this returns, and what lies in it was looked at
        anew. With `make` it is made where there is none, on storage that holds nothing else. Idempotent."""

    async def release(self, to: PrimaryDataStoreTO) -> None:
        """Where the hypervisor itself keeps the pool: its hosts do not use it any more. Its images stay, and so does what is
        known of them. Idempotent."""

    async def reconcile(self, claimed: Collection[str] = ()) -> None:
        """Remove what dead processes left where the hypervisor keeps images, and no command knows of. What belongs to commands
        whose tokens are `claimed` is let be. Idempotent; may run beside commands, and takes as long as its hosts do.

        `StorageError` where some of them could not be asked: then it is to be called again."""

    def host_pools(self) -> Sequence[HostPool]:
        """What it talks to. Contacts nothing."""
        return ()

    async def aclose(self) -> None:
        """Give back connections. Idempotent."""

    def _unsupported(self, what: str) -> OperationUnsupported:
        return OperationUnsupported(f"{self.type} handler cannot {what}", hypervisor=self.type.value, operation=what)
