"""What we note of the images of a volume group, as tags of the group: all hosts that have the group have them, each change is
one step of LVM's own metadata, and nothing else has to be kept anywhere.

A note takes some hundred bytes of the group's metadata area, which by default has 1 MiB and holds the present content and the
next: see docs/stores.md for how many images that is.

A tag has at most 1024 characters, of few kinds (lvm(8), TAGS): so the note is compressed, written in base64, and cut.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

from stores.backends.lvm_calls import Lvm
from stores.errors import IntegrityError
from stores.small_objects import LIMIT, SmallObjects

_OURS = "sa1"
_PIECE = 900
"""Characters of a note in one tag."""


class LvmNotes(SmallObjects):
    def __init__(self, lvm: Lvm, *, id: str) -> None:  # noqa: A002 - the contract's word
        self.id = id
        self._lvm = lvm

    async def get(self, ref: str) -> bytes | None:
        return decoded(await self._tags()).get(ref)

    async def put(self, ref: str, content: bytes) -> None:
        old, new = tags_of(ref, await self._tags()), encoded(ref, content)
        await self._lvm.retag(sorted(new - old), sorted(old - new))

    async def remove(self, ref: str) -> None:
        await self._lvm.retag([], sorted(tags_of(ref, await self._tags())))

    async def refs(self) -> list[str]:
        return list(decoded(await self._tags()))

    async def _tags(self) -> tuple[str, ...]:
        return (await self._lvm.look()).tags


def encoded(ref: str, content: bytes) -> set[str]:
    """The tags that hold a note: `sa1.<note>.<place>.<of how many>.<piece>`."""
    text = base64.urlsafe_b64encode(zlib.compress(ref.encode() + b"\0" + content, 9)).decode().rstrip("=")
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return {f"{_OURS}.{_key(ref)}.{place}.{len(pieces)}.{piece}" for place, piece in enumerate(pieces)}


def tags_of(ref: str, tags: Iterable[str]) -> set[str]:
    """Those that hold the note."""
    return {tag for tag in tags if tag.startswith(f"{_OURS}.{_key(ref)}.")}


def decoded(tags: Iterable[str]) -> Mapping[str, bytes]:
    """All notes, by their refs. Tags of others are let be. `IntegrityError` where somebody else has changed ours."""
    pieces: dict[str, dict[int, str]] = defaultdict(dict)
    for tag in tags:
        ours, _, rest = tag.partition(".")
        if ours == _OURS:
            key, place, count, piece = _parts(rest)
            pieces[f"{key}.{count}"][place] = piece
    return dict(_note(pieces[key], int(key.partition(".")[2])) for key in pieces)


def _parts(rest: str) -> tuple[str, int, str, str]:
    try:
        key, place, count, piece = rest.split(".")
        return key, int(place), str(int(count)), piece
    except ValueError:
        raise _damaged() from None


def _note(pieces: Mapping[int, str], count: int) -> tuple[str, bytes]:
    if sorted(pieces) != list(range(count)):
        raise _damaged()
    text = "".join(pieces[place] for place in range(count))
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        note = unpacker.decompress(packed, 2 * LIMIT)
        ref, separator, content = note.partition(b"\0")
        if not separator or not unpacker.eof:
            raise _damaged()
        return ref.decode(), content
    except (ValueError, zlib.error):
        raise _damaged() from None


def _damaged() -> IntegrityError:
    return IntegrityError(
        f"tags of the volume group that begin with {_OURS}. are not as the agent wrote them: restore the group's metadata"
        " (vgcfgrestore), or remove them, and its images count as images without a record"
    )


def _key(ref: str) -> str:
    return hashlib.sha256(ref.encode()).hexdigest()[:24]
