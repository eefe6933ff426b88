"""Sending the data of objects and segments over the engine's connections, and the manifests that make large objects of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stores.backends import swift_segments as segments
from stores.backends.swift_client import SwiftClient
from stores.backends.swift_errors import refusal
from stores.backends.swift_publish import hex_etag, large_etag, unconfirmed
from stores.transfer.put import Putter, Sendable

_TYPE = {"Content-Type": "application/octet-stream"}  # without one Swift guesses by the name


@dataclass(frozen=True, slots=True)
class Segment:
    """Something that a manifest names, and that the store holds. `etag` is hex."""

    name: str
    etag: str
    size: int


class Sender:
    """Sends data to one container."""

    def __init__(self, client: SwiftClient, putter: Putter) -> None:
        self._client = client
        self._putter = putter

    async def put(self, ref: str, body: Sendable, md5: str, headers: Mapping[str, str] | None = None) -> str:
        """Makes `body`, which has that MD5, an object. The ETag that is answered; the server refuses other bytes by itself."""
        target, again = self._client.put_target(ref, {**_TYPE, "ETag": md5, **(headers or {})})
        answer = await self._putter.put(body, target, ref, again)
        if answer.status != 201:
            error = refusal(answer.status, answer.content, store=self._client.config.id, operation="PUT", ref=ref)
            error.details["tries"] = answer.tries
            raise error
        return hex_etag(answer.answer.headers.get("etag"))

    async def segment(self, write: str, number: int, body: Sendable, md5: str) -> Segment:
        """Sends a segment. `IntegrityError` where the server does not confirm it."""
        name = segments.segment(write, number)
        if await self.put(name, body, md5) != md5:
            raise unconfirmed(self._client, name, f"segment {number}")
        return Segment(name, md5, body.length)

    async def gathered(self, write: str, sent: Sequence[Segment], most: int) -> Sequence[Segment]:
        """At most `most` segments that are the same bytes as `sent`: where those are more, manifests of `most` of them each."""
        if len(sent) <= most:
            return sent
        found = []
        for number, start in enumerate(range(0, len(sent), most), 1):
            some = sent[start : start + most]
            name, etag = segments.manifest(write, number), large_etag([segment.etag for segment in some])
            if hex_etag(await self.manifest(name, some)) != etag:
                raise unconfirmed(self._client, name, f"manifest {number}")
            found.append(Segment(name, etag, sum(segment.size for segment in some)))
        return found

    async def manifest(
        self, ref: str, parts: Sequence[Segment], headers: Mapping[str, str] | None = None
    ) -> str | None:
        """Makes the segments, in that order, a large object; the ETag that was answered. The server compares size and ETag of
        each with what it has ("Static Large Objects" in Swift's manual)."""
        listed = [
            {"path": self._client.segment_path(part.name), "etag": part.etag, "size_bytes": part.size} for part in parts
        ]
        body = json.dumps(listed).encode()
        query = {"multipart-manifest": "put"}
        answer = await self._client.call("PUT", ref, query=query, headers={**_TYPE, **(headers or {})}, body=body)
        return answer.headers.get("Etag")
