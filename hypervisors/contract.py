"""READ SECOND. What a hypervisor handler is: what it needs of a store, and how it reads and writes images.

The verbs themselves (lock order, negotiation, publication, what an answer says) are written once, in
`hypervisors.operations`; a handler only declares and does what is peculiar to its hypervisor. Verbs that a hypervisor has no
way to do keep their default here, which refuses with `OperationUnsupported`.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from stores.contract import Kind, PendingWrite, Presentation, Progress
from stores.errors import StorageError
from stores.to import ImageFormat, ProvisioningType


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


class Operation(StrEnum):
    """What an acceptance is asked for. The rows of the table in docs/hypervisors.md."""

    COPY_TEMPLATE = "copy template to primary"
    ATTACH_ISO = "attach ISO"
    COPY_VOLUME = "copy volume to primary"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image as the commands and our records know it, never as its own bytes claim.

    `format` None: the command does not say, and the gate decides from the bytes. `compression`: gzip, bzip2, xz, zstd.
    """

    format: ImageFormat | None
    virtual_size: int | None = None
    compression: str | None = None


@dataclass(frozen=True, slots=True)
class Accepts:
    """Kinds in order of preference, and why: the reason is shown by `explain`."""

    kinds: tuple[Kind, ...]
    because: str


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


class HypervisorHandler(abc.ABC):
    """One hypervisor. Stateless apart from its connections; every method may be cancelled and then leaves nothing behind
    that the surrounding `PendingWrite` does not remove."""

    type: ClassVar[HypervisorType]
    native_format: ClassVar[ImageFormat]
    """The format a volume gets when the command does not say."""

    @abc.abstractmethod
    def accepts(self, operation: Operation, source: ImageSpec, target: ImageSpec) -> Accepts:
        """What the handler can read the source from, in order of preference."""

    @abc.abstractmethod
    def fills(self, operation: Operation, target: ImageSpec) -> Accepts:
        """What the handler can write the target through."""

    @abc.abstractmethod
    async def copy(
        self, source: Source, target: PendingWrite, spec: ImageSpec, *, checksum: str | None, progress: Progress
    ) -> Written:
        """Write the source's content into `target` in `spec.format`. Untrusted sources pass the gate first.
        `checksum` (`{ALG}hex` or bare MD5) is of the source object's bytes; a mismatch is `ChecksumMismatch`.
        The caller commits."""

    async def create(
        self, target: PendingWrite, spec: ImageSpec, provisioning: ProvisioningType, *, backing: Source | None = None
    ) -> Written:
        """An empty volume, or with `backing` a linked clone of it."""
        raise self._unsupported("create")

    async def resize(self, source: Source, new_size: int, *, shrink: bool) -> Written:
        """Change the virtual size in place. Shrinking only when told."""
        raise self._unsupported("resize")

    async def measure(self, source: Source) -> Written:
        """Sizes of an existing image, by its recorded format."""
        raise self._unsupported("measure")

    async def aclose(self) -> None:
        """Give back connections. Idempotent."""

    def _unsupported(self, what: str) -> OperationUnsupported:
        return OperationUnsupported(f"{self.type} handler cannot {what}", hypervisor=self.type.value, operation=what)
