"""What can be asked of a share, each as one exchange or two: opening, looking, renaming, flushing, listing. Blocking.

Paths are relative to the share, as on the wire. Errors are those of smbprotocol and `Lost`: see `smb_errors`. Structures by
section of [MS-SMB2] and [MS-FSCC].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from smbprotocol.exceptions import SMBException, SMBResponseException
from smbprotocol.ioctl import IOCTLFlags, SMB2IOCTLRequest, SMB2IOCTLResponse
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    ImpersonationLevel,
    SMB2CloseRequest,
    SMB2CreateRequest,
    SMB2CreateResponse,
    SMB2FlushRequest,
    SMB2QueryDirectoryRequest,
    SMB2QueryInfoRequest,
    SMB2SetInfoRequest,
)

from stores.backends.smb_connection import CREDIT
from stores.backends.smb_errors import ACCESS_DENIED, MISSING, NO_MORE_FILES, NO_SUCH_FILE, Lost, status_of
from stores.backends.smb_link import Link
from stores.contract import ObjectInfo, Usage

# Access ([MS-SMB2] 2.2.13.1).
READ = 0x1 | 0x80  # data, attributes
WRITE = 0x2 | 0x4 | 0x80 | 0x100 | 0x10000  # data, appending, attributes, writing them, deletion (which renaming needs)
LOOK = 0x80
DELETE = 0x10000 | 0x80
LIST = 0x1 | 0x80
ADD = 0x2 | 0x4 | 0x80  # files and folders in a folder

SHARE_ALL = 0x7  # reading, writing and deleting
STABLE = 0x5
"""Nobody may write meanwhile: how a server pins a version. Who reads and who renames or deletes is welcome."""

OPEN = CreateDisposition.FILE_OPEN
CREATE = CreateDisposition.FILE_CREATE
FILE = CreateOptions.FILE_NON_DIRECTORY_FILE
FOLDER = CreateOptions.FILE_DIRECTORY_FILE
REMOVE = CreateOptions.FILE_DELETE_ON_CLOSE

_DIRECTORY = 0x10  # [MS-FSCC] 2.6
_REPARSE = 0x400
_LINK_TAGS = (0xA000000C, 0xA0000003)  # symbolic links and mount points ([MS-FSCC] 2.1.2.1)
_EPOCH = 116_444_736_000_000_000  # 1970 in units of 100 ns since 1601

_ALL = struct.Struct("<qqqqI4xqqIBBxxq")  # the fixed beginning of FILE_ALL_INFORMATION (2.4.2)
_ENTRY = struct.Struct("<IIqqqqqqIIIIq")  # the same of FILE_ID_FULL_DIR_INFORMATION (2.4.22)
_FULL_SIZE = struct.Struct("<qqqII")  # FILE_FS_FULL_SIZE_INFORMATION (2.5.4)
_FILE_ALL, _FILE_RENAME, _FS_FULL_SIZE, _ID_FULL_DIR = 18, 10, 7, 38
_INFO_FILE, _INFO_FILESYSTEM = 1, 2
_RESTART = 0x1  # SMB2_RESTART_SCANS


@dataclass(frozen=True, slots=True)
class Status:
    """What a server says about a file at one moment."""

    index: int  # stays over renames; 0 where the file system has none
    size: int
    written: int  # 100 ns since 1601
    is_dir: bool

    def info(self, ref: str) -> ObjectInfo:
        """The version is file id, size and time of the last write."""
        if self.is_dir:
            return ObjectInfo(ref, None, is_dir=True)
        version = f"{self.index:x}-{self.size}-{self.written}"
        return ObjectInfo(ref, self.size, version=version, modified=(self.written - _EPOCH) / 10_000_000)


def create(link: Link, path: str, access: int, disposition: int, options: int, share: int = SHARE_ALL) -> bytes:
    """A handle. Whoever gets it closes it."""
    request = SMB2CreateRequest()
    request["impersonation_level"] = ImpersonationLevel.Impersonation
    request["desired_access"] = access
    request["share_access"] = share
    request["create_disposition"] = disposition
    request["create_options"] = options
    request["buffer_path"] = path.encode("utf-16-le") or b"\0\0"
    answer = SMB2CreateResponse()
    answer.unpack(link.call(request))
    return bytes(answer["file_id"].get_value())


def close(link: Link, handle: bytes) -> None:
    request = SMB2CloseRequest()
    request["file_id"] = handle
    link.call(request)


@contextmanager
def opened(link: Link, path: str, access: int, options: int, share: int = SHARE_ALL) -> Iterator[bytes]:
    """A handle for the time of the context. What closing it raises is told only where nothing else is."""
    handle = create(link, path, access, OPEN, options, share)
    try:
        yield handle
    except BaseException:
        with suppress(SMBException, OSError, Lost):
            close(link, handle)
        raise
    close(link, handle)


def look(link: Link, handle: bytes) -> Status:
    fields = _ALL.unpack_from(_query(link, handle, _INFO_FILE, _FILE_ALL))
    _, _, written, _, _, _, size, _, _, is_dir, index = fields
    return Status(index, size, written, bool(is_dir))


def stat(link: Link, path: str) -> Status:
    with opened(link, path, LOOK, 0) as handle:
        return look(link, handle)


def found(link: Link, path: str) -> Status | None:
    """As `stat`; None where there is nothing of that name."""
    try:
        return stat(link, path)
    except SMBResponseException as error:
        if status_of(error) in MISSING:
            return None
        raise


def remove(link: Link, path: str, options: int = FILE) -> None:
    """A file, or by `FOLDER` an empty folder. Gone when this returns, unless somebody else still has it open."""
    with opened(link, path, DELETE, options | REMOVE):
        pass


def rename(link: Link, handle: bytes, path: str, *, replace: bool) -> None:
    """In one step ([MS-FSCC] 2.4.42.2). NAME_COLLISION where the name is taken and not to be replaced."""
    name = path.encode("utf-16-le")
    request = SMB2SetInfoRequest()
    request["info_type"] = _INFO_FILE
    request["file_info_class"] = _FILE_RENAME
    request["file_id"] = handle
    request["buffer"] = struct.pack("<B7xQI", replace, 0, len(name)) + name
    link.call(request)


def flush(link: Link, handle: bytes) -> None:
    """What was written through any handle of that file is on the server's disk."""
    link.receive(begin_flush(link, handle))


def begin_flush(link: Link, handle: bytes) -> Any:
    """The same under way, for `receive`."""
    request = SMB2FlushRequest()
    request["file_id"] = handle
    return link.send(request)


def flush_folder(link: Link, path: str) -> None:
    """The names in it. Servers that flush no folders, or let only owners do it, keep names by their file system's journal."""
    try:
        with opened(link, path, ADD, FOLDER) as handle:
            flush(link, handle)
    except SMBResponseException as error:
        if status_of(error) not in (ACCESS_DENIED, 0xC0000010, 0xC00000BB, 0xC000000D, 0xC0000008):
            raise


def usage(link: Link, path: str) -> Usage:
    """Of the file system, as far as this user may have it (quotas)."""
    with opened(link, path, LOOK, FOLDER) as handle:
        fields = _FULL_SIZE.unpack_from(_query(link, handle, _INFO_FILESYSTEM, _FS_FULL_SIZE))
    total, mine, free, sectors, sector = fields
    unit = sectors * sector
    used = max(0, total - free) * unit
    return Usage(used=used, capacity=used + max(0, mine) * unit)


def entries(link: Link, path: str) -> dict[str, Status]:
    """What is in a folder, by name; links and mount points are left out."""
    listed: dict[str, Status] = {}
    with opened(link, path, LIST, FOLDER) as handle:
        flags = _RESTART
        while block := _next_entries(link, handle, flags):
            listed |= _parsed(block)
            flags = 0
    return listed


def control(link: Link, handle: bytes, code: int, data: bytes, *, room: int) -> bytes:
    """An FSCTL with at most `room` bytes of answer ([MS-SMB2] 2.2.31)."""
    request = SMB2IOCTLRequest()
    request["ctl_code"] = code
    request["file_id"] = handle
    request["max_output_response"] = room
    request["flags"] = IOCTLFlags.SMB2_0_IOCTL_IS_FSCTL
    request["buffer"] = data
    answer = SMB2IOCTLResponse()
    answer.unpack(link.call(request, payload=max(len(data), room)))
    return bytes(answer["buffer"].get_value())


def _query(link: Link, handle: bytes, kind: int, info_class: int) -> bytes:
    request = SMB2QueryInfoRequest()
    request["info_type"] = kind
    request["file_info_class"] = info_class
    request["output_buffer_length"] = 4096  # FILE_ALL_INFORMATION ends in the path
    request["file_id"] = handle
    return _output(link.call(request))


def _next_entries(link: Link, handle: bytes, flags: int) -> bytes:
    request: Any = SMB2QueryDirectoryRequest()
    request["file_information_class"] = _ID_FULL_DIR
    request["flags"] = flags
    request["file_id"] = handle
    request["output_buffer_length"] = CREDIT
    request["buffer"] = "*".encode("utf-16-le")
    try:
        return _output(link.call(request, payload=CREDIT))
    except SMBResponseException as error:
        if status_of(error) in (NO_MORE_FILES, NO_SUCH_FILE):
            return b""
        raise


def _output(body: bytes) -> bytes:
    """The buffer of an answer of QUERY_INFO or QUERY_DIRECTORY (2.2.38, 2.2.34): offsets count from the header's 64 bytes."""
    offset, length = struct.unpack_from("<HI", body, 2)
    return body[offset - 64 : offset - 64 + length]


def _parsed(block: bytes) -> dict[str, Status]:
    listed: dict[str, Status] = {}
    at, step = 0, 1
    while step:
        step, _, _, _, written, _, size, _, attributes, length, tag, _, index = _ENTRY.unpack_from(block, at)
        name = block[at + _ENTRY.size : at + _ENTRY.size + length].decode("utf-16-le", "surrogatepass")
        if name not in (".", "..") and not (attributes & _REPARSE and tag in _LINK_TAGS):
            listed[name] = Status(index, size, written, bool(attributes & _DIRECTORY))
        at += step
    return listed
