"""Making what was sent the object, and proof that it is.

Stored means stored: the ETag of the object as the server tells it must be the MD5 of what was sent or, of a large object, the
MD5 of its segments' ETags, and the size must be right. Each write leaves its own name in the object's metadata: so that an
object whose answer was lost is known for ours, and no other is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from stores.backends import swift_segments as segments
from stores.backends.swift_client import SwiftClient
from stores.contract import ObjectInfo
from stores.errors import AlreadyExists, IntegrityError, NotFound, StorageError, StoreError, Unavailable
from stores.uninterrupted import uninterrupted

WRITE = "X-Object-Meta-Storage-Agent-Write"
REPLACES = "X-Object-Meta-Storage-Agent-Replaces"
"""A write whose segments are of no more use: whoever finds this removes them."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Head:
    """An object as it is now. `write` and `replaces` only where they are of this very name."""

    info: ObjectInfo
    etag: str
    large: bool
    write: str | None
    replaces: str | None


def version_of(etag: str) -> str:
    """As an entity tag in its quotes, which Swift takes although it does not send them with most objects."""
    return f'"{etag}"'


def hex_etag(told: str | None) -> str:
    return (told or "").strip('"').lower()


def large_etag(etags: Sequence[str]) -> str:
    """The ETag of a static large object: the MD5 of the ETags of its segments, in hex, one behind the other."""
    return hashlib.md5("".join(etags).encode(), usedforsecurity=False).hexdigest()


def head_of(ref: str, headers: Mapping[str, str]) -> Head:
    """From the answer to a HEAD."""
    try:
        size, modified = int(headers["Content-Length"]), float(headers.get("X-Timestamp", "0"))
    except (KeyError, ValueError):
        raise Unavailable(f"the server answers what is no object's description for {ref}", ref=ref) from None
    etag = hex_etag(headers.get("Etag"))
    return Head(
        ObjectInfo(ref, size, version_of(etag) if etag else None, modified or None),
        etag,
        headers.get("X-Static-Large-Object", "").lower() == "true",
        segments.write_of(ref, headers.get(WRITE)),
        segments.write_of(ref, headers.get(REPLACES)),
    )


async def look(client: SwiftClient, ref: str) -> Head | None:
    """What there is under that name."""
    try:
        return head_of(ref, (await client.call("HEAD", ref)).headers)
    except NotFound:
        return None


def taken(ref: str) -> AlreadyExists:
    """The error for a name that is not free."""
    return AlreadyExists(f"{ref} exists, and this write was not told to replace it", ref=ref)


class Publication:
    """Of one object of `size` bytes with that ETag, by `write`.

    `joins`: an object that is there with just this content is taken for the outcome of an earlier try.
    """

    def __init__(
        self, client: SwiftClient, ref: str, *, write: str, size: int, etag: str, replace: bool, joins: bool = False
    ) -> None:
        self._client = client
        self._ref = ref
        self._write = write
        self._size = size
        self._etag = etag
        self._replace = replace
        self._joins = joins
        self.undecided = False
        """Whether the object may come into being although this failed: nobody knows, and what it needs has to stay."""

    async def publish(self, send: Callable[[Mapping[str, str]], Awaitable[str | None]]) -> ObjectInfo:
        """`send` makes the object, with these headers besides its own, and returns the ETag that it was answered with. A
        cancellation that comes once it was answered is raised when all is decided."""
        before = await look(self._client, self._ref)
        if before is not None and not self._replace:
            if self._joins and self._has_content(before):
                return before.info
            raise taken(self._ref)
        headers = {WRITE: self._write}
        if before is not None and before.write is not None and before.large:
            headers[REPLACES] = before.write
        if not self._replace:
            headers["If-None-Match"] = "*"
        self.undecided = True
        told = await self._sent(send, headers)
        return await uninterrupted(self._confirmed(told, before))

    async def _sent(
        self, send: Callable[[Mapping[str, str]], Awaitable[str | None]], headers: Mapping[str, str]
    ) -> str:
        """The ETag that was answered. When the request fails although it was carried out, the object itself tells."""
        try:
            return hex_etag(await send(headers))
        except (AlreadyExists, Unavailable) as error:
            final = not isinstance(error, Unavailable)
            if final and error.details.get("tries", 1) == 1 and not self._joins:
                self.undecided = False
                raise
            try:
                found = await look(self._client, self._ref)
            except StoreError:
                raise error from None
            if found is not None and (found.write == self._write or (self._joins and self._has_content(found))):
                return found.etag
            self.undecided = not final
            raise
        except StorageError:
            self.undecided = False
            raise

    async def _confirmed(self, told: str, before: Head | None) -> ObjectInfo:
        """What the store says of the object now, if that is what was sent; else the wrong object is removed again."""
        try:
            head = await look(self._client, self._ref)
        except Unavailable:
            if told != self._etag:
                raise
            return ObjectInfo(self._ref, self._size, version_of(told))  # proven; only its time is not known
        self.undecided = False
        if head is None or told != self._etag or not self._has_content(head):
            if head is not None and head.write == self._write:
                await segments.remove_one(self._client, self._ref)
            raise unconfirmed(self._client, self._ref, "the object")
        for old in {before.write, before.replaces} - {None, head.write} if before is not None else ():
            await tidy(self._client, self._ref, old)
        return head.info

    def _has_content(self, head: Head) -> bool:
        return (head.info.size, head.etag) == (self._size, self._etag)


async def tidy(client: SwiftClient, ref: str, write: str | None) -> None:
    """Removes the segments of an object that was replaced. Failing to is logged: the new object still names them, and whoever
    discards, replaces or deletes it removes them."""
    if write is None:
        return
    try:
        await segments.remove(client, write)
    except StoreError as error:
        _log.warning("segments of a replaced object were not removed", ref=ref, error=error.message)


def unconfirmed(client: SwiftClient, ref: str, what: str) -> IntegrityError:
    """The error for a store that does not hold, or does not say that it holds, what was sent."""
    return IntegrityError(
        f"{ref}: the store holds something else than was sent as {what}: its ETag or its size does not agree",
        ref=ref,
        store=client.config.id,
    )
