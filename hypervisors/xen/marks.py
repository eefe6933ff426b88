"""What we write into the `other_config` of VDIs and SRs, and what it says. No I/O.

Every change is one key that is added or removed, which XAPI does in one step and refuses where the key is there already. So
nothing of other programs' is overwritten, and there is no moment at which something is half written. On a VDI:

    storage-agent:of        its own uuid
    storage-agent:image     `Image`: it was made by us to be the disk of that name
    storage-agent:ready     `Ready`: and it is that; or CONDEMNED: it never will be
    storage-agent:copying   `Copying`: a copy of it is being made by us
    storage-agent:tag       `Tagged`: it is a snapshot, or what is left of one
    storage-agent:doc:...   documents, see `about_documents`

VDI.snapshot, clone and copy copy all of it to what they make, whoever calls them: what is marked as being of another disk than
itself is a copy, and says nothing. On an SR:

    storage-agent:lock:...  `Held`: the name whose digest follows is being written
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, ValidationError

OURS = "storage-agent:"
OF = f"{OURS}of"
IMAGE = f"{OURS}image"
READY = f"{OURS}ready"
COPYING = f"{OURS}copying"
TAG = f"{OURS}tag"
CONDEMNED = "condemned"
_DOCUMENT = f"{OURS}doc:"
_LOCK = f"{OURS}lock:"

METADATA = "cbt_metadata"
"""The type of what is left of a snapshot whose content was destroyed: which blocks changed, and no disk."""

_BASE64 = "base64:"
_PLAIN = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]*")


class _Mark(BaseModel):
    model_config = ConfigDict(frozen=True)

    def text(self) -> str:
        return self.model_dump_json()


class Image(_Mark):
    """`token` is the command that writes it, `id` this one write's, `owner` the originator."""

    ref: str
    token: str
    owner: str
    id: str


class Ready(_Mark):
    """Of two disks of one name that both are ready, because a replacement was interrupted, the one with the higher `seq`
    counts. `over`: uuids of those that it replaced."""

    seq: int
    over: tuple[str, ...] = ()


class Copying(_Mark):
    """The disk `of`, which is called `name`, is being copied to become `ref`. `until`: seconds since the epoch."""

    ref: str
    token: str
    owner: str
    id: str
    of: str
    name: str
    until: float


class Tagged(_Mark):
    """`of`: the ref of the volume that it is a snapshot of."""

    tag: str
    of: str


class Held(_Mark):
    """A lock. `until`: seconds since the epoch."""

    owner: str
    id: str
    until: float


Mark = TypeVar("Mark", bound=_Mark)


def parsed(model: type[Mark], config: Mapping[str, str], key: str) -> Mark | None:
    """What is no such mark is none of ours."""
    try:
        return model.model_validate_json(config[key])
    except (KeyError, ValidationError):
        return None


@dataclass(frozen=True, slots=True)
class Disk:
    """A VDI as XAPI showed it. Bytes. `handle` is XAPI's reference."""

    handle: str
    uuid: str
    name: str
    virtual_size: int
    physical_size: int
    config: Mapping[str, str]
    type: str = "user"
    usable: bool = True  # managed, and not missing
    snapshot: bool = False
    tracked: bool = False  # changed block tracking is on
    vbds: Sequence[str] = ()

    @property
    def own(self) -> bool:
        """Whether its marks are about itself."""
        return self.config.get(OF) == self.uuid

    @property
    def image(self) -> Image | None:
        """What it was made for, if we made it. One that has just been made does not say yet that it is itself."""
        return parsed(Image, self.config, IMAGE) if self.own or OF not in self.config else None

    @property
    def ready(self) -> Ready | None:
        return parsed(Ready, self.config, READY) if self.own else None

    @property
    def copied(self) -> Copying | None:
        """What it was copied for, if it is a copy that we made and did not come to mark: it is still called as the disk that it
        is a copy of, and nobody uses it."""
        copying = parsed(Copying, self.config, COPYING)
        if copying is None or copying.of == self.uuid or self.name != copying.name or self.vbds:
            return None
        return copying

    @property
    def tagged(self) -> Tagged | None:
        """Which snapshot it is."""
        return parsed(Tagged, self.config, TAG) if self.own else None

    @property
    def copying(self) -> Copying | None:
        """What is being made of it."""
        copying = parsed(Copying, self.config, COPYING)
        return copying if copying is not None and copying.of == self.uuid else None


class Sort(Enum):
    READY = "a disk of ours"
    WRITING = "being made by us"
    COPIED = "a copy of ours that is not marked yet"
    FOREIGN = "somebody's"


def sort_of(disk: Disk) -> Sort:
    if disk.image is not None:
        return Sort.READY if disk.ready is not None else Sort.WRITING
    return Sort.COPIED if disk.copied is not None else Sort.FOREIGN


def left_of(disk: Disk) -> Image | Copying | None:
    """Whose it is, while it is not finished: of whichever process, which may be dead."""
    match sort_of(disk):
        case Sort.WRITING:
            return disk.image
        case Sort.COPIED:
            return disk.copied
        case _:
            return None


def all_ready(ref: str, disks: Iterable[Disk]) -> list[Disk]:
    """Those that are `ref`: one, or more after an interrupted replacement, of which the last counts."""
    found = []
    for disk in disks:
        image, ready = disk.image, disk.ready
        if image is not None and ready is not None and image.ref == ref and _is_disk(disk):
            found.append((ready.seq, disk.uuid, disk))
    return [disk for _, _, disk in sorted(found, key=lambda each: each[:2])]


def all_writing(ref: str, disks: Iterable[Disk]) -> list[Disk]:
    """Those that are to become `ref`."""
    return [disk for disk in disks if sort_of(disk) is Sort.WRITING and (image := disk.image) and image.ref == ref]


def is_foreign_disk(disk: Disk) -> bool:
    """Whether it is an object under its uuid."""
    return sort_of(disk) is Sort.FOREIGN and _is_disk(disk)


def _is_disk(disk: Disk) -> bool:
    return disk.usable and disk.type != METADATA


# -------------------------------------------------------------------------------------------------------- documents


def document_key(parts: Sequence[str], number: int) -> str:
    """Of its `number`th version: a replacement adds the next before it removes this one."""
    return f"{_DOCUMENT}{'/'.join(quote(part, safe='') for part in parts)}#{number}"


def about_documents(disk: Disk) -> dict[tuple[str, ...], dict[int, str]]:
    """All of a disk's documents by name: their versions, of which the highest counts, by number."""
    found: dict[tuple[str, ...], dict[int, str]] = {}
    for key, value in disk.config.items() if disk.own else ():
        name, _, number = key.removeprefix(_DOCUMENT).rpartition("#")
        if key.startswith(_DOCUMENT) and number.isascii() and number.isdigit():
            found.setdefault(tuple(unquote(part) for part in name.split("/")), {})[int(number)] = value
    return found


def as_text(content: bytes) -> str:
    """As a value of a map, which has to be text that XML can carry."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = _BASE64
    if text.startswith(_BASE64) or not _PLAIN.fullmatch(text):
        return _BASE64 + base64.b64encode(content).decode()
    return text


def as_bytes(text: str) -> bytes:
    """What `as_text` made it of. ValueError for what it never makes."""
    if not text.startswith(_BASE64):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_BASE64), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


# ------------------------------------------------------------------------------------------------------------ locks


def lock_key(ref: str, extension: int = 0) -> str:
    """Of the lock itself, and of its `extension`th renewal."""
    key = _LOCK + hashlib.sha256(ref.encode()).hexdigest()[:16]
    return f"{key}#{extension}" if extension else key


def lock_keys(config: Mapping[str, str]) -> dict[str, Held]:
    """All locks and renewals of an SR, by key."""
    held = {key: parsed(Held, config, key) for key in config if key.startswith(_LOCK)}
    return {key: lock for key, lock in held.items() if lock is not None}


def holder(ref: str, config: Mapping[str, str]) -> Held | None:
    """Who has `ref` locked, until when in the end. What is no lock of ours locks until somebody removes it."""
    key = lock_key(ref)
    if key not in config:
        return None
    lock = parsed(Held, config, key)
    if lock is None:
        return Held(owner="unknown", id="", until=float("inf"))
    renewals = [
        each.until for name, each in lock_keys(config).items() if name.startswith(f"{key}#") and each.id == lock.id
    ]
    return lock.model_copy(update={"until": max([lock.until, *renewals])})
