"""The segments of large objects: where they are, to whom they belong, and how they are removed.

    .storage-agent/segments/<ref>/<token>-<write>/00000001     a segment
    .storage-agent/segments/<ref>/<token>-<write>/m00001       a manifest of segments, which the object's own manifest names

`<ref>` and `<token>` are hashes of the object's name and of the writer's token, `<write>` is of one write and never used again.
An object carries the name of its write in its metadata, so that what is in use is known, and what is not. A copy that
somebody makes of an object under another name does not own the segments.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stores.backends.swift_client import SwiftClient
from stores.errors import NotFound, Unavailable
from stores.paths import RECORDS
from stores.transfer.groups import first_failure

SEGMENTS = f"{RECORDS}/segments"
AT_ONCE = 8
"""Deletions under way at once."""
PAGE = 10_000
"""Names in one answer: what Swift gives at most by default."""

_WRITE = re.compile(r"[0-9a-f]{32}/[0-9a-f]{16}-[0-9a-z-]{1,64}")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing has it. `etag` is hex; `large` says that there are segments behind it."""

    name: str
    size: int
    etag: str
    large: bool
    modified: str


def owner(ref: str) -> str:
    """What the writes of all segments of `ref` begin with."""
    return hashlib.sha256(ref.encode()).hexdigest()[:32]


def writer(ref: str, token: str) -> str:
    """What the names of all writes of `ref` by `token` begin with."""
    return f"{owner(ref)}/{hashlib.sha256(token.encode()).hexdigest()[:16]}-"


def write_of(ref: str, told: str | None) -> str | None:
    """The write that an object names, if it is one of `ref`."""
    if told is None or not _WRITE.fullmatch(told) or not told.startswith(f"{owner(ref)}/"):
        return None
    return told


def segment(write: str, number: int) -> str:
    return f"{SEGMENTS}/{write}/{number:08d}"


def manifest(write: str, number: int) -> str:
    return f"{SEGMENTS}/{write}/m{number:05d}"


async def listing(
    client: SwiftClient, prefix: str, *, after: str = "", before: str | None = None, page: int = PAGE
) -> AsyncIterator[Listed]:
    """What begins with `prefix`, behind `after` and in front of `before`, in order. Nothing where there is no container."""
    while True:
        query = {"format": "json", "limit": str(page), "prefix": prefix, "marker": after}
        if before is not None:
            query["end_marker"] = before
        try:
            answer = await client.call("GET", None, query=query)
        except NotFound:
            return
        entries = answer.json() if answer.body else []
        for entry in entries:
            listed = _listed(client, entry)
            if listed.name <= after:
                raise Unavailable(f"{client.config.id}: the listing does not go on from its marker")
            after = listed.name
            yield listed
        if len(entries) < page:
            return


def _listed(client: SwiftClient, entry: Any) -> Listed:
    try:
        etag = str(entry.get("slo_etag") or entry["hash"]).strip('"')
        return Listed(str(entry["name"]), int(entry["bytes"]), etag, "slo_etag" in entry, str(entry["last_modified"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unavailable(f"{client.config.id}: the answer is no listing of a container") from None


async def writes(client: SwiftClient, ref: str, token: str) -> dict[str, dict[str, Listed]]:
    """What there is of the writes of `ref` by `token`: write -> name -> object."""
    found: dict[str, dict[str, Listed]] = {}
    async for listed in listing(client, f"{SEGMENTS}/{writer(ref, token)}"):
        write, _, name = listed.name.removeprefix(f"{SEGMENTS}/").rpartition("/")
        found.setdefault(write, {})[name] = listed
    return found


async def remove(client: SwiftClient, write: str) -> None:
    """Removes all that there is of a write. Idempotent."""
    await remove_all(client, [listed.name async for listed in listing(client, f"{SEGMENTS}/{write}/")])


async def remove_all(client: SwiftClient, names: Sequence[str]) -> set[str]:
    """Removes objects, but not what their manifests name. Idempotent. Returns which of them were there."""
    waiting, removed = iter(names), set[str]()
    with first_failure():
        async with asyncio.TaskGroup() as group:
            for turn in range(min(AT_ONCE, len(names))):
                group.create_task(_remove_some(client, waiting, removed), name=f"remove segments {turn}")
    return removed


async def _remove_some(client: SwiftClient, names: Iterable[str], removed: set[str]) -> None:
    for name in names:
        if await remove_one(client, name):
            removed.add(name)


async def remove_one(client: SwiftClient, name: str) -> bool:
    """Whether it was there."""
    try:
        await client.call("DELETE", name)
    except NotFound:
        return False
    return True
