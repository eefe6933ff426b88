"""Objects in a bucket of anything that speaks S3 with Signature Version 4.

Control calls go through aiobotocore; the bytes of objects do not, since its body path costs several times the CPU of
`stores.transfer`, which fetches ranges from presigned URLs instead.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
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
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpRangeReader, HttpTarget

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`presign_s`: for how long a URL given to a reader is valid; it is replaced when two thirds of that are over.
        Raises what `s3_config` does."""
        config = s3_config(to, settings)
        self.id = config.id
        self._client = S3Client(config, settings, engine)
        self._engine = engine
        self._resolve = resolve
        self._presign_s = presign_s
        self._clock = clock

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return _OFFERS

    async def stat(self, ref: str) -> ObjectInfo:
        check_ref(ref)
        return object_info(ref, await self._client.call("head_object", ref, Key=ref))

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        check_ref(info.ref)
        if kind not in _OFFERS:
            raise self._unsupported(f"presenting an object as {kind}")
        signed = _Presigned(self._client, info.ref, expiry=self._presign_s, resolve=self._resolve, clock=self._clock)
        reader = HttpRangeReader(self._engine, info, signed.target)
        yield reader if kind is Kind.RANGE_READER else self._engine.stream(reader)

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """Objects of up to one buffer (8 MiB) are sent by a single PUT, larger ones in parts."""
        check_ref(ref)
        if kind not in self.writes:
            raise self._unsupported(f"writing through {kind}")
        return uploading(self._client, self._engine, ref, token=token, size=size, replace=replace)

    async def discard(self, ref: str, *, token: str) -> None:
        check_ref(ref)
        await discard(self._client, ref, token)

    async def delete(self, ref: str) -> None:
        check_ref(ref)
        await self._client.call("delete_object", ref, Key=ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Keys that are not refs (folder markers that end in a slash, empty components) cannot be addressed here and are
        left out."""
        prefix = check_prefix(prefix)
        if prefix:
            # The object of that very name comes first in key order, before whatever else begins with it.
            page, _ = await self._page(prefix, None, limit=1)
            for info in page:
                if info.ref == prefix:
                    yield info
        token: str | None = None
        while True:
            page, following = await self._page(f"{prefix}/" if prefix else "", token)
            for info in page:
                if _is_ref(info.ref) and in_listing(info.ref, prefix):
                    yield info
            if following is None:
                return
            if following == token:
                raise Unavailable(
                    f"{self.id}: the listing does not go on from its own continuation token", store=self.id
                )
            token = following

    async def usage(self) -> Usage:
        """Bytes of all objects, records included: a complete listing, one call for each 1000 of them."""
        used, token = 0, None
        while True:
            page, token = await self._page("", token)
            used += sum(info.size or 0 for info in page)
            if token is None:
                return Usage(used=used, capacity=None)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _page(
        self, prefix: str, token: str | None, *, limit: int = 1000
    ) -> tuple[Sequence[ObjectInfo], str | None]:
        """One page of the listing, and the token of the next one."""
        going_on = {} if token is None else {"ContinuationToken": token}
        page = await self._client.call("list_objects_v2", prefix, Prefix=prefix, MaxKeys=limit, **going_on)
        infos = [
            ObjectInfo(entry["Key"], entry["Size"], entry["ETag"], entry["LastModified"].timestamp())
            for entry in page.get("Contents", ())
        ]
        return infos, page["NextContinuationToken"] if page.get("IsTruncated") else None


def _is_ref(key: str) -> bool:
    try:
        check_ref(key)
    except InvalidReference:
        return False
    return True


class _Presigned:
    """GETs of one key, signed ahead. The signature covers method and host, not the range or the conditions."""

    def __init__(
        self, client: S3Client, ref: str, *, expiry: int, resolve: Resolve, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._ref = ref
        self._expiry = expiry
        self._resolve = resolve
        self._clock = clock
        self._until = 0.0
        self._targets: Iterator[HttpTarget] = iter(())

    async def target(self) -> HttpTarget:
        """A target that is valid for a third of the expiry at least. Successive ones take turns over the addresses."""
        now = self._clock()
        if now >= self._until:
            self._targets = itertools.cycle(await self._sign())
            self._until = now + self._expiry * 2 / 3
        return next(self._targets)

    async def _sign(self) -> Sequence[HttpTarget]:
        client = await self._client.get()
        bucket = self._client.config.bucket
        with translated(self._client.config.id, "presign", self._ref):
            url = urlsplit(
                await client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": self._ref}, ExpiresIn=self._expiry
                )
            )
        tls = await self._client.tls() if url.scheme == "https" else None
        host, port = url.hostname or "", url.port or (80 if tls is None else 443)
        path = f"{url.path}?{url.query}" if url.query else url.path
        return [HttpTarget(host, port, address, tls, path) for address in await self._resolve(host, port)]
