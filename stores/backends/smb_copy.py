"""A file copied by the server itself: FSCTL_SRV_COPYCHUNK ([MS-SMB2] 2.2.31.1, 3.3.5.15.6). No byte comes to this host."""

from __future__ import annotations

import struct

from smbprotocol.exceptions import SMBResponseException

from stores.backends.directory import expect_version
from stores.backends.smb_calls import FILE, READ, STABLE, control, look, opened
from stores.backends.smb_errors import status_of
from stores.backends.smb_link import Link
from stores.contract import MiB, ObjectInfo
from stores.errors import IntegrityError, StoreUnsupported

_RESUME_KEY = 0x00140078  # FSCTL_SRV_REQUEST_RESUME_KEY
_COPYCHUNK_WRITE = 0x001480F2  # as COPYCHUNK, for a destination that is opened for writing alone

CHUNK = 1 * MiB
CHUNKS = 16
"""Of one request: what Windows allows by default, and Samba as well."""

_UNSUPPORTED = (0xC0000010, 0xC00000BB, 0xC000000D, 0xC0000002, 0xC0000022)


def copy_chunks(link: Link, source: ObjectInfo, path: str, target: bytes) -> int:
    """All of the file at `path` into the empty file that `target` is a handle of; how many bytes that were."""
    with opened(link, path, READ, FILE, STABLE) as handle:
        expect_version(source, look(link, handle).info(source.ref))
        size = source.size or 0
        try:
            key = control(link, handle, _RESUME_KEY, b"", room=32)[:24]
            for start in range(0, size, CHUNK * CHUNKS):
                _copy(link, target, key, start, min(size, start + CHUNK * CHUNKS), source.ref)
        except SMBResponseException as error:
            if status_of(error) in _UNSUPPORTED:
                raise StoreUnsupported(
                    f"the server of {source.ref} copies no files by itself", ref=source.ref
                ) from None
            raise
        expect_version(source, look(link, handle).info(source.ref))
    return size


def _copy(link: Link, target: bytes, key: bytes, start: int, end: int, ref: str) -> None:
    chunks = [(at, min(CHUNK, end - at)) for at in range(start, end, CHUNK)]
    request = key + struct.pack("<II", len(chunks), 0)
    request += b"".join(struct.pack("<QQII", at, at, length, 0) for at, length in chunks)
    _, _, written = struct.unpack_from("<III", control(link, target, _COPYCHUNK_WRITE, request, room=12))
    if written != end - start:
        raise IntegrityError(f"{ref}: the server copied {written} of {end - start} bytes", ref=ref)
