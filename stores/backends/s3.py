"""Objects in a bucket of anything that speaks S3 with Signature Version 4.

Control calls go through aiobotocore; the bytes of objects do not, since its body path costs several times the CPU of
`stores.transfer`, which fetches ranges from presigned URLs instead.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

from stores.backends.connecting import Resolve, system_resolve
from stores.backends.s3_client import S3Client
from stores.backends.s3_config import s3_config
from stores.backends.s3_errors import translated
from stores.backends.s3_upload import discard, object_info, uploading
from stores.contract import DataStore, Kind, ObjectInfo, PendingWrite, Presentation, Usage
from stores.errors import InvalidReference, Unavailable
from stores.paths import check_prefix, check_ref, in_listing
from stores.settings import StoreSettings
from stores.streams import presented
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpPatience, HttpRangeReader, HttpTarget

_OFFERS = frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})


class S3Store(DataStore):
    """The bucket of an `S3TO`. `version` is the ETag; refs are keys.

    Addresses of the endpoint are not checked against the URL policy: who configures object stores is the operator of the
    management server, and they are usually private.
    """

    writes = frozenset({Kind.BYTE_STREAM})

    def __init__(
        self,
        to: S3TO,
        settings: StoreSettings,
        engine: TransferEngine,
        *,
        resolve: Resolve = system_resolve,
        presign_s: int = 900,
    ) -> None:
        """`presign_s`: for how long a URL that a reader uses is valid; a reader whose URL is refused asks for another.
        Raises what `s3_config` does."""
        config = s3_config(to, settings)
        self.id = config.id
        self._client = S3Client(config, settings, engine)
        self._engine = engine
        self._resolve = resolve
        self._presign_s = presign_s
        self._connections = settings.connections

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
        config = self._client.config
        patience = HttpPatience(
            connections=self._connections,
            connect_timeout_s=config.connect_timeout,
            read_timeout_s=config.read_timeout,
            attempts=config.attempts,
        )
        signed = _Presigned(self._client, info.ref, expiry_s=self._presign_s, resolve=self._resolve)
        reader = HttpRangeReader(self._engine, info, signed.target, patience=patience)
        if kind is Kind.RANGE_READER:
            yield reader
            return
        async with presented(self._engine.stream(reader)) as stream:
            yield stream

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """Objects of up to one buffer (8 MiB) are sent by a single PUT, larger ones in parts."""
        _check_key(ref)
        if kind not in self.writes:
            raise self._unsupported(f"writing through {kind}")
        return uploading(self._client, self._engine, ref, token=token, size=size, replace=replace)

    async def discard(self, ref: str, *, token: str) -> None:
        _check_key(ref)
        await discard(self._client, ref, token)

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


class _Presigned:
    """GETs of one key, signed ahead. The signature covers method and host, not the range or the conditions."""

    def __init__(self, client: S3Client, ref: str, *, expiry_s: int, resolve: Resolve) -> None:
        self._client = client
        self._ref = ref
        self._expiry_s = expiry_s
        self._resolve = resolve
        self._turns = itertools.count()

    async def target(self) -> HttpTarget:
        """Signed now. Successive targets take turns over the endpoint's addresses."""
        client = await self._client.get()
        config = self._client.config
        with translated(config.id, "presign", self._ref):
            url = urlsplit(
                await client.generate_presigned_url(
                    "get_object", Params={"Bucket": config.bucket, "Key": self._ref}, ExpiresIn=self._expiry_s
                )
            )
        tls = await self._client.tls() if url.scheme == "https" else None
        host, port = url.hostname or "", url.port or (80 if tls is None else 443)
        addresses = await self._resolve(host, port)
        path = f"{url.path}?{url.query}" if url.query else url.path
        return HttpTarget(host, port, addresses[next(self._turns) % len(addresses)], tls, path)
