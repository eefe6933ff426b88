"""What every handler must do, as a mixin: a test module subclasses it and says how to make its handler and its images.

    class TestSomeHandler(HandlerContract):
        @pytest.fixture
        async def handler(self, ...): ...
        def target(self, name): ...            # a pending write that the handler fills
        def source(self, name, content): ...   # an image in the handler's own format that a guest would see as `content`
        async def foreign(self, content): ...  # one in another format
        def seen(self, name): ...              # what a guest would see
        def left(self): ...                    # everything that is there

The hooks must not go through the handler under test.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from hypervisors.contract import (
    HypervisorHandler,
    HypervisorType,
    ImageSpec,
    Operation,
    OperationUnsupported,
    SizeRefused,
    Source,
)
from stores.contract import DEVICES, Kind, MiB, PendingWrite, Silent
from stores.to import ImageFormat, ProvisioningType

SIZE = 4 * MiB


def disk(seed: int = 1, size: int = SIZE) -> bytes:
    """Data at both ends and a hole between."""
    rng = random.Random(seed)
    return rng.randbytes(1 * MiB) + bytes(size - 1 * MiB - 4096) + rng.randbytes(4096)


class HandlerContract:
    """`targets`: the formats that the handler writes. `unwritable`: one that it does not. `unreadable`: all those that it does
    not read. `expanded`: those that it reads compressed, None for all, and () for not even those of a format that nobody told.
    `shares`: whether a copy may take no room of its own."""

    targets: tuple[ImageFormat, ...]
    unreadable: tuple[ImageFormat, ...]
    unwritable: ImageFormat
    expanded: tuple[ImageFormat, ...] | None = None
    shares = False

    @abstractmethod
    def target(self, name: str) -> AbstractAsyncContextManager[PendingWrite]: ...

    @abstractmethod
    def source(self, name: str, content: bytes) -> AbstractAsyncContextManager[Source]: ...

    @abstractmethod
    def foreign(self, content: bytes) -> AbstractAsyncContextManager[Source]: ...

    @abstractmethod
    def seen(self, name: str, image_format: ImageFormat) -> bytes: ...

    @abstractmethod
    def left(self) -> set[str]: ...

    def spec(
        self, handler: HypervisorHandler, size: int | None = None, image_format: ImageFormat | None = None
    ) -> ImageSpec:
        """Of a target; without a format the handler's own."""
        return ImageSpec(image_format or handler.native_format, size)

    def own_format(self, handler: HypervisorHandler) -> ImageFormat:
        image_format = self.spec(handler).format
        assert image_format is not None
        return image_format

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[PendingWrite]:
        async with self.target("scratch") as pending:
            yield pending

    # ------------------------------------------------------------------------------------------------ declarations

    def test_it_says_who_it_is(self, handler: HypervisorHandler) -> None:
        assert handler.type in HypervisorType
        assert self.spec(handler).format in self.targets

    @pytest.mark.parametrize("operation", list(Operation))
    @pytest.mark.parametrize("source_format", [*ImageFormat, None])
    @pytest.mark.parametrize("compression", [None, "gzip"])
    def test_it_accepts_something_and_says_why(
        self,
        handler: HypervisorHandler,
        operation: Operation,
        source_format: ImageFormat | None,
        compression: str | None,
    ) -> None:
        """Pure, the same each time, no kind twice; or it says that it cannot read such images."""
        spec = ImageSpec(source_format, compression=compression)
        not_expanded = (
            compression is not None
            and operation in (Operation.COPY_TEMPLATE, Operation.COPY_VOLUME)
            and (source_format is not None or self.expanded == ())
            and self.expanded is not None
            and source_format not in self.expanded
        )
        if source_format in self.unreadable or not_expanded:
            with pytest.raises(OperationUnsupported, match=str(source_format or compression)):
                handler.accepts(operation, spec, self.spec(handler))
            return
        accepted = handler.accepts(operation, spec, self.spec(handler))
        assert accepted == handler.accepts(operation, spec, self.spec(handler))
        assert accepted.kinds
        assert len(set(accepted.kinds)) == len(accepted.kinds)
        assert accepted.because

    def test_it_fills_what_can_be_written(self, handler: HypervisorHandler) -> None:
        for image_format in self.targets:
            filled = handler.fills(Operation.COPY_TEMPLATE, self.spec(handler, image_format=image_format))
            assert set(filled.kinds) <= {Kind.LOCAL_PATH, Kind.BYTE_STREAM, Kind.MANAGED_DISK, *DEVICES}
            assert filled.because
        with pytest.raises(OperationUnsupported) as refused:
            handler.fills(Operation.COPY_TEMPLATE, self.spec(handler, image_format=self.unwritable))
        assert self.unwritable.value in str(refused.value)

    # ------------------------------------------------------------------------------------------------------- copies

    async def copied(self, handler: HypervisorHandler, source: Source, name: str, target: ImageSpec) -> int:
        async with self.target(name) as pending:
            written = await handler.copy(
                source, pending, target, scratch=self.scratch, checksum=None, progress=Silent()
            )
            await pending.commit()
        assert written.format == target.format
        assert written.physical_size > 0 or self.shares
        return written.virtual_size

    async def test_copy_of_its_own_format(self, handler: HypervisorHandler) -> None:
        content = disk()
        async with self.source("from", content) as source:
            size = await self.copied(handler, source, "to", self.spec(handler))
        assert size == SIZE
        assert self.seen("to", self.own_format(handler)) == content

    async def test_copy_into_every_format(self, handler: HypervisorHandler) -> None:
        content = disk(2)
        async with self.foreign(content) as source:
            for image_format in self.targets:
                name = f"to-{image_format}"
                assert await self.copied(handler, source, name, self.spec(handler, image_format=image_format)) == SIZE
                assert self.seen(name, image_format) == content

    async def test_copy_into_a_larger_volume(self, handler: HypervisorHandler) -> None:
        content = disk(3)
        async with self.source("from", content) as source:
            size = await self.copied(handler, source, "to", self.spec(handler, 8 * MiB))
        assert size == 8 * MiB
        assert self.seen("to", self.own_format(handler)) == content + bytes(4 * MiB)

    @pytest.mark.parametrize("turns", [0, 1, 2, 5])
    async def test_a_cancelled_copy_leaves_nothing(self, handler: HypervisorHandler, turns: int) -> None:
        async with self.foreign(disk()) as source:
            before = self.left()
            copying = asyncio.create_task(self.copied(handler, source, "to", self.spec(handler)))
            for _ in range(turns):
                await asyncio.sleep(0.002)
            copying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copying
            assert self.left() == before

    async def test_estimates_are_upper_bounds(self, handler: HypervisorHandler) -> None:
        async with self.foreign(disk()) as source:
            expected = await handler.estimate(source, self.spec(handler))
            async with self.target("to") as pending:
                written = await handler.copy(
                    source,
                    pending,
                    self.spec(handler),
                    scratch=self.scratch,
                    checksum=None,
                    progress=Silent(),
                )
        assert expected is None or written.physical_size <= expected + 64 * 1024

    # ------------------------------------------------------------------------------------------------------- volumes

    async def test_an_empty_volume_reads_as_zeroes(self, handler: HypervisorHandler) -> None:
        for image_format in self.targets:
            if image_format is ImageFormat.ISO:
                continue
            async with self.target(f"new-{image_format}") as pending:
                written = await handler.create(pending, self.spec(handler, SIZE, image_format), ProvisioningType.THIN)
                await pending.commit()
            assert (written.format, written.virtual_size) == (image_format, SIZE)
            assert self.seen(f"new-{image_format}", image_format) == bytes(SIZE)

    async def test_sizes_of_a_volume(self, handler: HypervisorHandler) -> None:
        async with self.source("v", disk()) as source:
            measured = await handler.measure(source)
        assert measured.virtual_size == SIZE
        assert 0 < measured.physical_size <= 2 * SIZE

    async def test_a_volume_grows(self, handler: HypervisorHandler) -> None:
        content = disk()
        async with self.source("v", content) as source:
            for _ in range(2):
                grown = await handler.resize(source, 8 * MiB, shrink=False)
                assert grown.virtual_size == 8 * MiB
            assert self.seen("v", self.own_format(handler)) == content + bytes(4 * MiB)

    async def test_a_volume_shrinks_only_when_told(self, handler: HypervisorHandler) -> None:
        content = disk()
        async with self.source("v", content) as source:
            with pytest.raises(SizeRefused) as refused:
                await handler.resize(source, 2 * MiB, shrink=False)
            assert refused.value.details == {"asked": 2 * MiB, "least": SIZE}
            assert self.seen("v", self.own_format(handler)) == content
            try:
                shrunk = await handler.resize(source, 2 * MiB, shrink=True)
            except OperationUnsupported:
                shrunk = await handler.measure(source)
                assert shrunk.virtual_size == SIZE
            else:
                assert shrunk.virtual_size == 2 * MiB
            assert self.seen("v", self.own_format(handler)) == content[: shrunk.virtual_size]

    async def test_closing_twice(self, handler: HypervisorHandler) -> None:
        tasks = asyncio.all_tasks()
        async with self.source("v", disk()) as source:
            await handler.measure(source)
            before = self.left()
            await handler.aclose()
            await handler.aclose()
            assert self.left() == before
        assert asyncio.all_tasks() == tasks
