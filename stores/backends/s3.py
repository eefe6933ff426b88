"""Objects in a bucket of anything that speaks S3 with Signature Version 4.

Control calls go through aiobotocore; the bytes of objects do not, since its body path costs several times the CPU of
`stores.transfer`, which fetches ranges from presigned URLs and sends parts to them instead.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

from stores.backends.connecting import Resolve, system_resolve
from stores.backends.s3_client import S3Client
from stores.backends.s3_config import s3_config
from stores.backends.s3_notes import Notes
from stores.backends.s3_parts import S3_CUT, Cut
from stores.backends.s3_publish import object_info
from stores.backends.s3_send import Sender
from stores.backends.s3_signed import Signer
from stores.backends.s3_stream import streaming
from stores.backends.s3_upload import uploading
from stores.contract import DataStore, Kind, ObjectInfo, PendingUpload, PendingWrite, Presentation, Usage
from stores.errors import InvalidReference, Unavailable
from stores.paths import check_prefix, check_ref, in_listing
from stores.settings import StoreSettings
from stores.streams import presented
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpPatience, HttpRangeReader
from stores.transfer.put import Putter

_OFFERS = frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})


class S3Store(DataStore):
    """The bucket of an `S3TO`. `version` is the ETag; refs are keys.

    Addresses of the endpoint are not checked against the URL policy: who configures object stores is the operator of the
    management server, and they are usually private.
    """

    writes = frozenset({Kind.BYTE_STREAM, Kind.UPLOAD})

    def __init__(
        self,
        to: S3TO,
        settings: StoreSettings,
        engine: TransferEngine,
        *,
        resolve: Resolve = system_resolve,
        presign_s: int = 900,
        cut: Cut = S3_CUT,
    ) -> None:
        """`cut`: of streams, into parts. `presign_s`: for how long a URL that a reader uses is valid; a reader whose URL is
        refused asks for another. A writer has one for every request.
        Raises what `s3_config` does."""
        config = s3_config(to, settings)
        self.id = config.id
        self._client = S3Client(config, settings, engine)
        self._engine = engine
        self._cut = cut
        self._signer = Signer(self._client, resolve, expiry_s=presign_s)
        self._patience = HttpPatience(
            connections=settings.connections,
            connect_timeout_s=config.connect_timeout,
            read_timeout_s=config.read_timeout,
            attempts=config.attempts,
        )

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return _OFFERS

    async def stat(self, ref: str) -> ObjectInfo:
        _check_key(ref)
        return object_info(ref, await self._client.call("head_object", ref, Key=ref))

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        _check_key(info.ref)
        if kind not in _OFFERS:
            raise self._unsupported(f"presenting an object as {kind}")
        target = partial(self._signer.target, "get_object", info.ref)
        reader = HttpRangeReader(self._engine, info, target, patience=self._patience)
        if kind is Kind.RANGE_READER:
            yield reader
            return
        async with presented(self._engine.stream(reader)) as stream:
            yield stream

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """Small objects are sent by a single PUT, larger ones in parts (`maxSingleUploadSizeInBytes`)."""
        _check_key(ref)
        if kind is not Kind.BYTE_STREAM:
            raise self._unsupported(f"writing through {kind}")
        sender = self._sender(ref)
        return streaming(
            self._client, self._engine, sender, ref, token=token, size=size, replace=replace, cut=self._cut
        )

    def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingUpload]:
        _check_key(ref)
        return uploading(
            self._client,
            self._engine,
            self._sender(ref),
            ref,
            source,
            token=token,
            replace=replace,
            parallel=self._patience.connections,
        )

    async def discard(self, ref: str, *, token: str) -> None:
        _check_key(ref)
        await Notes(self._client, ref, token).discard()

    async def delete(self, ref: str) -> None:
        _check_key(ref)
        await self._client.call("delete_object", ref, Key=ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Keys that are not refs (folder markers that end in a slash, empty components) cannot be addressed here and are
        left out. The whole listing is held in memory to be put in order, which not every server does."""
        prefix = check_prefix(prefix)
        found = await self._keys(f"{prefix}/" if prefix else "")
        if prefix:
            # The object of that very name is the first of all whose keys begin so.
            page, _ = await self._page(prefix, None, limit=1)
            found += [info for info in page if info.ref == prefix]
        for info in sorted(found, key=lambda info: info.ref):
            if _is_ref(info.ref) and in_listing(info.ref, prefix):
                yield info

    async def usage(self) -> Usage:
        """Bytes of all objects, records included: a complete listing, one call for each 1000 of them."""
        return Usage(used=sum(info.size or 0 for info in await self._keys("")), capacity=None)

    async def aclose(self) -> None:
        await self._client.aclose()

    def _sender(self, ref: str) -> Sender:
        return Sender(self._client, self._signer, Putter(self._engine, self._patience), ref)

    async def _keys(self, prefix: str) -> builtins.list[ObjectInfo]:
        found, token = await self._page(prefix, None)
        while token is not None:
            page, following = await self._page(prefix, token)
            if following == token:
                raise Unavailable(f"{self.id}: the listing does not go on from its continuation token", store=self.id)
            found += page
            token = following
        return found

    async def _page(
        self, prefix: str, token: str | None, *, limit: int = 1000
    ) -> tuple[builtins.list[ObjectInfo], str | None]:
        """One page of the listing, and the token of the next one."""
        going_on = {} if token is None else {"ContinuationToken": token}
        page = await self._client.call("list_objects_v2", prefix, Prefix=prefix, MaxKeys=limit, **going_on)
        infos = [
            ObjectInfo(entry["Key"], entry["Size"], entry["ETag"], entry["LastModified"].timestamp())
            for entry in page.get("Contents", ())
        ]
        return infos, page["NextContinuationToken"] if page.get("IsTruncated") else None


def _check_key(ref: str) -> None:
    """Some servers (SeaweedFS) take a backslash for a slash, so that a name must be harmless either way."""
    check_ref(ref)
    check_ref(ref.replace("\\", "/"))


def _is_ref(key: str) -> bool:
    try:
        _check_key(key)
    except InvalidReference:
        return False
    return True
