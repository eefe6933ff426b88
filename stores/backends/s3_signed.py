"""Requests that are signed ahead, to be made on the engine's own connections: reads and writes of object data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from stores.backends.connecting import Resolve
from stores.backends.s3_client import S3Client
from stores.backends.s3_errors import translated
from stores.transfer.target import HttpTarget


class Signer:
    """`expiry_s`: for how long a signed target may be used to begin a request."""

    def __init__(self, client: S3Client, resolve: Resolve, *, expiry_s: int) -> None:
        self._client = client
        self._resolve = resolve
        self._expiry_s = expiry_s
        self._turns = itertools.count()

    async def target(
        self, operation: str, ref: str, headers: Mapping[str, str] | None = None, **parameters: Any
    ) -> HttpTarget:
        """Signed now. `parameters` are botocore's; those that it writes as headers have to be given as `headers` as well, and
        are signed. Successive targets take turns over the endpoint's addresses."""
        client = await self._client.get()
        config = self._client.config
        with translated(config.id, "presign", ref):
            url = urlsplit(
                await client.generate_presigned_url(
                    operation, Params={"Bucket": config.bucket, "Key": ref, **parameters}, ExpiresIn=self._expiry_s
                )
            )
        tls = await self._client.tls() if url.scheme == "https" else None
        host, port = url.hostname or "", url.port or (80 if tls is None else 443)
        addresses = await self._resolve(host, port)
        path = f"{url.path}?{url.query}" if url.query else url.path
        return HttpTarget(host, port, addresses[next(self._turns) % len(addresses)], tls, path, headers or {})
