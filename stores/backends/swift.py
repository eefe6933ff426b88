"""Objects in a container of OpenStack Swift, or of what speaks as it does.

Small requests go over aiohttp, the bytes of objects over `stores.transfer`, both with the token of one login. Large objects are
static large objects: segments below `.storage-agent/segments/` in the same container, and a manifest that makes them visible as
one.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from stores.backends import swift_segments as segments
from stores.backends.connecting import Resolve, system_resolve
from stores.backends.swift_client import SwiftClient
from stores.backends.swift_config import SWIFT_CUT, SwiftCut, swift_config
from stores.backends.swift_publish import head_of, look, version_of
from stores.backends.swift_send import Sender
from stores.backends.swift_stream import streaming
from stores.backends.swift_upload import uploading
from stores.contract import DataStore, Kind, ObjectInfo, PendingUpload, PendingWrite, Presentation, Usage
from stores.errors import AccessDenied, NotFound, Unavailable
from stores.paths import RECORDS, check_prefix, check_ref, in_listing, is_ref
from stores.settings import StoreSettings
from stores.streams import presented
from stores.to import SwiftTO
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpRangeReader
from stores.transfer.put import Putter

_OFFERS = frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})
_LAST = "\U0010ffff"  # Swift orders names by code points


class SwiftStore(DataStore):
    """One container, made at the first write where it is missing. `version` is the ETag; refs are names of objects.

    Addresses are not checked against the URL policy: who configures object stores is the operator of the management server,
    and they are usually private.
    """

    writes = frozenset({Kind.BYTE_STREAM, Kind.UPLOAD})

    def __init__(
        self,
        to: SwiftTO,
        settings: StoreSettings,
        engine: TransferEngine,
        *,
        resolve: Resolve = system_resolve,
        cut: SwiftCut = SWIFT_CUT,
    ) -> None:
        """`cut`: of streams, into segments. Raises what `swift_config` does."""
        config = swift_config(to, settings)
        self.id = config.id
        self._client = SwiftClient(config, settings, engine, resolve)
        self._engine = engine
        self._cut = cut

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return _OFFERS

    async def stat(self, ref: str) -> ObjectInfo:
        check_ref(ref)
        return head_of(ref, (await self._client.call("HEAD", ref)).headers).info

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        check_ref(info.ref)
        if kind not in _OFFERS:
            raise self._unsupported(f"presenting an object as {kind}")
        reader = HttpRangeReader(self._engine, info, self._client.target(info.ref), patience=self._client.patience)
        if kind is Kind.RANGE_READER:
            yield reader
            return
        async with presented(self._engine.stream(reader)) as stream:
            yield stream

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """Small objects are sent by a single PUT, larger ones in segments."""
        check_ref(ref)
        if kind is not Kind.BYTE_STREAM:
            raise self._unsupported(f"writing through {kind}")
        write = f"{segments.writer(ref, token)}{secrets.token_hex(8)}"
        return streaming(
            self._client, self._engine, self._sender(), ref, write=write, size=size, replace=replace, cut=self._cut
        )

    def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingUpload]:
        check_ref(ref)
        return uploading(
            self._client,
            self._engine,
            self._sender(),
            ref,
            source,
            token=token,
            replace=replace,
            parallel=self._client.patience.connections,
        )

    async def discard(self, ref: str, *, token: str) -> None:
        """As far as the server's listing tells, which may be behind by some seconds after a failure of the server's own."""
        check_ref(ref)
        head = await look(self._client, ref)
        for write in await segments.writes(self._client, ref, token):
            if head is None or write != head.write:
                await segments.remove(self._client, write)
        if head is not None and head.replaces is not None:
            await segments.remove(self._client, head.replaces)

    async def delete(self, ref: str) -> None:
        """The segments first: what is interrupted is ended by the next try. Those of a large object that others have made are
        removed by the server."""
        check_ref(ref)
        head = await look(self._client, ref)
        if head is None:
            return
        for write in {head.write, head.replaces} - {None}:
            await segments.remove(self._client, str(write))
        if head.large and head.write is None:
            await self._delete_foreign(ref)
        else:
            await segments.remove_one(self._client, ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Names that are no refs (folder markers that end in a slash, empty components) cannot be addressed here and are left
        out."""
        prefix = check_prefix(prefix)
        if prefix:
            exact = await look(self._client, prefix)
            if exact is not None:
                yield exact.info
            parts: Sequence[tuple[str, str, str | None]] = [(f"{prefix}/", "", None)]
        else:
            parts = [("", "", f"{RECORDS}/"), ("", f"{RECORDS}/{_LAST}", None)]
        for beginning, after, before in parts:
            async for found in segments.listing(self._client, beginning, after=after, before=before):
                if is_ref(found.name) and in_listing(found.name, prefix):
                    yield _info(found)

    async def usage(self) -> Usage:
        """Bytes of all that is in the container, segments included, as Swift counts them: some seconds late. The capacity is
        what quotas of container and account leave."""
        try:
            container = await self._client.container()
        except NotFound:
            container = {}
        try:
            account = await self._client.account()
        except AccessDenied:  # whoever may only use this container
            account = {}
        return usage_of(container, account)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _delete_foreign(self, ref: str) -> None:
        query = {"multipart-manifest": "delete"}
        answer = await self._client.call("DELETE", ref, query=query, headers={"Accept": "application/json"})
        told = answer.json()
        errors = told.get("Errors") if isinstance(told, dict) else None
        if errors:
            raise Unavailable(f"{self.id}: the segments of {ref} could not all be removed", store=self.id, ref=ref)

    def _sender(self) -> Sender:
        return Sender(self._client, Putter(self._engine, self._client.patience))


def usage_of(container: Mapping[str, str], account: Mapping[str, str]) -> Usage:
    """From the headers of the two ("container_quotas" and "account_quotas" in Swift's manual). Pure."""
    used = _number(container, "X-Container-Bytes-Used") or 0
    capacities = []
    if (quota := _number(container, "X-Container-Meta-Quota-Bytes")) is not None:
        capacities.append(quota)
    if (quota := _number(account, "X-Account-Meta-Quota-Bytes")) is not None:
        capacities.append(used + quota - (_number(account, "X-Account-Bytes-Used") or 0))
    return Usage(used, max(used, min(capacities)) if capacities else None)


def _number(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _info(found: segments.Listed) -> ObjectInfo:
    try:
        modified = datetime.fromisoformat(found.modified).replace(tzinfo=UTC).timestamp()
    except ValueError:
        modified = None
    return ObjectInfo(found.name, found.size, version_of(found.etag), modified)
