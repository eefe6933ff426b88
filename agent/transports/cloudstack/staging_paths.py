"""Paths in an `ImageCache` store that is only a name: each says which object of an S3 store it stands for. Pure.

A management server keeps such a path with the object and sends it back as it is. That is all the memory there is: any agent of
the zone that has the same key reads from it what another one wrote, after any restart. Nobody else can make one, or change
one: what is named is read with the agents' own credentials. These are not in it.

The path is the object's key with a token before its last part, so that it looks like what servers are used to:
`template/tmpl/2/201/NAME/s3~TOKEN/FILE`. The token is base64url without padding (RFC 4648, section 5) of, big endian,

    kind (1: stands for an object, 2: has one of its own) | store (8 bytes) | size (8) | modified, ms since 1970 (8) | MAC (16)

where the MAC is HMAC-SHA-256, cut to 128 bits, over all of that and the key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum

from stores.errors import InvalidReference, TooLarge
from stores.paths import check_ref
from stores.secret import Secret

LIMIT = 255
"""Bytes that such a path may have: servers keep it in a column of that many characters."""

_MARK = "s3~"
_FIELDS = struct.Struct(">B8sQQ")
_MAC_SIZE = 16
_CONTEXT = b"storage-agent staging path 1\0"
_TOKEN_LENGTH = len(_MARK) + (8 * (_FIELDS.size + _MAC_SIZE) + 5) // 6


class Kind(IntEnum):
    """What becomes of the object when the path is deleted."""

    REFERENCE = 1  # nothing: it was there before
    OWN = 2  # it goes as well: it was made for this path


@dataclass(frozen=True, slots=True)
class Staged:
    """The object that a path stands for. `store`: see `store_mark`. `size` in bytes and `modified`, in ms since 1970, are those
    it had when the path was made, 0 for one of its `OWN`."""

    kind: Kind
    store: bytes
    key: str
    size: int = 0
    modified: int = 0


def store_mark(store_id: str) -> bytes:
    """Of the store with that id (`stores.contract.DataStore.id`): 8 bytes."""
    return hashlib.sha256(store_id.encode()).digest()[:8]


def path_of(staged: Staged, key: Secret) -> str:
    """The path, authenticated with `key`. `TooLarge` where servers could not keep it; `InvalidReference` for a key that is no
    name of an object."""
    check_ref(staged.key)
    folder, slash, file = staged.key.rpartition("/")
    path = f"{folder}{slash}{_token(staged, key)}/{file}"
    length = len(path.encode())
    if length > LIMIT:
        raise TooLarge(
            f"{staged.key[:80]}... is too long for a path that a management server keeps: that would have {length} bytes, and"
            f" {LIMIT} are possible; the longest key of an object that can be staged has {LIMIT - _TOKEN_LENGTH - 1}",
            limit=LIMIT,
            seen=length,
        )
    return path


def staged_of(path: str, key: Secret) -> Staged | None:
    """What a path stands for; None for one that does not say so. `InvalidReference` for one that does, and was not made with
    this `key`, or not as it is now."""
    folder, _, file = path.rpartition("/")
    before, slash, token = folder.rpartition("/")
    if not token.startswith(_MARK):
        return None
    try:
        packed = base64.b64decode(token.removeprefix(_MARK) + "=", altchars=b"-_", validate=True)
        kind, store, size, modified = _FIELDS.unpack(packed[:-_MAC_SIZE])
        staged = Staged(Kind(kind), store, f"{before}{slash}{file}", size, modified)
        check_ref(staged.key)
        ours = hmac.compare_digest(_token(staged, key).encode(), token.encode())
    except (binascii.Error, struct.error, ValueError, InvalidReference):
        ours = False
    if not ours:
        raise InvalidReference(
            "this path was not made by an agent with the same key: let all agents of the zone have the same"
            " cloudstack.staging_file, and have what was staged with another one staged again",
            path=path[:LIMIT],
        )
    return staged


def _token(staged: Staged, key: Secret) -> str:
    fields = _FIELDS.pack(staged.kind, staged.store, staged.size, staged.modified)
    mac = hmac.digest(key.reveal().encode(), _CONTEXT + fields + staged.key.encode(), "sha256")[:_MAC_SIZE]
    return _MARK + base64.urlsafe_b64encode(fields + mac).rstrip(b"=").decode()
