"""One object on its way into a container in order: a single PUT where it is small, else segments and a manifest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog

from stores.backends import swift_segments as segments
from stores.backends.s3_sums import md5_of
from stores.backends.swift_client import SwiftClient
from stores.backends.swift_config import SwiftCut
from stores.backends.swift_publish import Publication, large_etag, look, taken
from stores.backends.swift_send import Segment, Sender
from stores.contract import ObjectInfo
from stores.errors import StoreError
from stores.transfer.engine import TransferEngine
from stores.transfer.parted import PartedObject, PartedStream, parted
from stores.transfer.put import Views

_log = structlog.get_logger(__name__)

LATE_S = 1.0
"""How long a server may take to store what it had received when its client went away."""


@asynccontextmanager
async def streaming(
    client: SwiftClient,
    engine: TransferEngine,
    sender: Sender,
    ref: str,
    *,
    write: str,
    size: int | None,
    replace: bool,
    cut: SwiftCut,
) -> AsyncIterator[PartedStream]:
    """A write of `ref`, whose segments are removed on leaving without commit."""
    if not replace and await look(client, ref) is not None:
        raise taken(ref)
    target = SegmentedObject(client, engine, sender, ref, write=write, replace=replace, cut=cut)
    async with parted(target, engine.outgoing, ref, size=size, cut=cut) as stream:
        yield stream


class SegmentedObject(PartedObject):
    """Named by one manifest, or by a manifest of manifests."""

    def __init__(
        self,
        client: SwiftClient,
        engine: TransferEngine,
        sender: Sender,
        ref: str,
        *,
        write: str,
        replace: bool,
        cut: SwiftCut,
    ) -> None:
        self.single = cut.smallest
        self._client = client
        self._engine = engine
        self._sender = sender
        self._ref = ref
        self._write = write
        self._replace = replace
        self._cut = cut
        self._tried: list[str] = []  # names that may be there
        self._sent: dict[int, Segment] = {}

    async def begin(self) -> None:
        await self._client.make_container()

    async def part(self, number: int, view: memoryview) -> None:
        md5 = await self._engine.run(md5_of, [view])
        self._tried.append(segments.segment(self._write, number))
        self._sent[number] = await self._sender.segment(self._write, number, Views([view]), md5)

    async def put(self, view: memoryview) -> ObjectInfo:
        await self._client.make_container()
        md5 = await self._engine.run(md5_of, [view])
        publication = self._publication(len(view), md5)
        return await publication.publish(lambda headers: self._sender.put(self._ref, Views([view]), md5, headers))

    async def complete(self, count: int, size: int) -> ObjectInfo:
        sent = [self._sent[number] for number in range(1, count + 1)]
        manifests = -(-count // self._cut.manifest) if count > self._cut.manifest else 0
        self._tried += [segments.manifest(self._write, number) for number in range(1, manifests + 1)]
        parts = await self._sender.gathered(self._write, sent, self._cut.manifest)
        publication = self._publication(size, large_etag([part.etag for part in parts]))
        try:
            info = await publication.publish(partial(self._sender.manifest, self._ref, parts))
        except BaseException:
            if publication.undecided:
                self._tried.clear()  # the object may be there, or come: `discard` looks again
            raise
        self._tried.clear()
        return info

    async def abort(self) -> None:
        """Removes the segments by their names, which is more than a listing may know of by now.

        A segment whose request was cut off may still be on its way. For Swift it is then older than its removal, and gone;
        Ceph's radosgw knows no such thing, and the segment comes to stay. So it is looked for once more, a moment later.
        """
        names, self._tried = self._tried, []
        answered = {segment.name for segment in self._sent.values()}
        try:
            removed = await segments.remove_all(self._client, names)
            late = [name for name in names if name not in answered | removed]
            if late:
                await self._client.sleep(LATE_S)
                await segments.remove_all(self._client, late)
        except StoreError as error:
            _log.warning("segments of a write were not removed", ref=self._ref, error=error.message)

    def _publication(self, size: int, etag: str) -> Publication:
        return Publication(self._client, self._ref, write=self._write, size=size, etag=etag, replace=self._replace)
