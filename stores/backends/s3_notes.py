"""Notes about multipart uploads under way, so that what a dead process sent is found: to go on with, or to be removed.

A multipart upload that nobody completes or aborts keeps its parts, invisible and paid for. S3 stores no owner's mark with
an upload, so its id is kept in a small object below `.storage-agent/uploads/` for as long as it runs. Where the very answer
that begins an upload is lost, an empty one stays that nobody can be shown to own; the bucket's lifecycle rule
`AbortIncompleteMultipartUpload` is for those.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from stores.backends.s3_client import S3Client
from stores.errors import IntegrityError, NotFound, StoreError, Unavailable
from stores.paths import RECORDS


@dataclass(frozen=True, slots=True)
class Note:
    """`part` and `size` in bytes, where the upload is of a file: with others it cannot be gone on with."""

    upload_id: str
    size: int | None = None
    part: int | None = None


def marker_key(ref: str, token: str) -> str:
    """The key under which the writer `token` notes its multipart upload of `ref`."""
    identity = hashlib.sha256("\0".join((ref, token)).encode()).hexdigest()
    return f"{RECORDS}/uploads/{identity[:32]}.json"


class Notes:
    """The note of one writer about one object."""

    def __init__(self, client: S3Client, ref: str, token: str) -> None:
        self._client = client
        self._ref = ref
        self._marker = marker_key(ref, token)

    async def begin(self, *, size: int | None = None, part: int | None = None) -> str:
        """Begins a multipart upload and notes it; its id. Not to be interrupted in between."""
        answer = await self._client.call(
            "create_multipart_upload", self._ref, Key=self._ref, ChecksumAlgorithm="CRC64NVME"
        )
        upload_id: str = answer["UploadId"]
        note = {"key": self._ref, "upload_id": upload_id, "size": size, "part": part}
        try:
            await self._client.call("put_object", self._marker, Key=self._marker, Body=json.dumps(note).encode())
        except StoreError:
            await self._abort(upload_id)
            raise
        return upload_id

    async def read(self) -> Note | None:
        """`IntegrityError` for a note that cannot be read."""
        try:
            note = json.loads(await self._client.read(self._marker))
            key, found = note["key"], Note(note["upload_id"], note.get("size"), note.get("part"))
        except NotFound:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise IntegrityError(
                f"{self._marker} is not a note about an upload; look into it and remove it", ref=self._ref
            ) from None
        return found if key == self._ref and isinstance(found.upload_id, str) else None

    async def remove(self, upload_id: str) -> None:
        """Aborts the upload, and forgets it then. Idempotent."""
        await self._abort(upload_id)
        await self.forget()

    async def forget(self) -> None:
        """Removes the note."""
        await self._client.call("delete_object", self._marker, Key=self._marker)

    async def discard(self) -> None:
        """Removes what the writer noted and did not end. Idempotent."""
        note = await self.read()
        if note is not None:
            await self.remove(note.upload_id)

    async def _abort(self, upload_id: str) -> None:
        try:
            await self._client.call("abort_multipart_upload", self._ref, Key=self._ref, UploadId=upload_id)
        except (NotFound, Unavailable) as error:
            if not is_gone(error):
                raise


def is_gone(error: StoreError) -> bool:
    """Whether it says that there is no such multipart upload (any more); Ceph calls that NoSuchKey."""
    return error.details.get("code") in ("NoSuchUpload", "NoSuchKey")
