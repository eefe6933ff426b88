"""The manifest of a backup: a JSON object beside the backup's object, named `<ref>.manifest.json`. Pure.

It is written last, and in one step: a backup without one does not exist. It is written in one form only (`text_of`), so that
its digest names it: a child names its parent by ref and by that digest, and with it all that the parent builds on.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hypervisors.contract import HandlerError
from stores.errors import Retry
from stores.to import ImageFormat

SUFFIX = ".manifest.json"

DEEPEST = 64
"""The most backups that one builds on, in a row: a restore reads the maps of all. After that, a full one is taken."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class BrokenChain(HandlerError):
    """A backup, or one that it builds on, is missing, or is not what its manifest says. Nothing was written. Details: `ref`."""


class BackupDamaged(HandlerError):
    """The content of a backup's object is not what its manifest says: details carry `ref`, `expected` and `found`."""

    retry = Retry.OPERATOR


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Content(_Part):
    """The object. `version`: what the store called it when it was written; None where that was not known yet."""

    ref: str
    size: Count
    sha256: Sha256
    version: str | None = None


class Below(_Part):
    """The backup that an incremental one builds on, and the digest of its manifest."""

    ref: str
    manifest: Sha256


class Manifest(_Part):
    """Sizes are bytes; `created` is the time of the snapshot, in seconds since the epoch. `point` names that moment in the
    volume's own book-keeping. `changed`: bytes of the disk that the object says something about. `depth`: how many it builds
    on. `replaces`: digests of manifests that this one stands in for, since the disk that both lead to is the same."""

    manifest: Literal[1] = 1
    ref: str
    content: Content
    format: ImageFormat
    virtual_size: Annotated[int, Field(gt=0)]
    cluster_size: Annotated[int, Field(gt=0)]
    changed: Count
    parent: Below | None = None
    depth: Count = 0
    volume: str
    snapshot: str
    point: str
    created: float
    replaces: tuple[Sha256, ...] = ()

    def stands_for(self, digest: str) -> bool:
        """Whether a child that names its parent's manifest by `digest` means this one."""
        return digest == digest_of(self) or digest in self.replaces


def manifest_ref(ref: str) -> str:
    return ref + SUFFIX


def text_of(manifest: Manifest) -> bytes:
    """Its one form."""
    content = manifest.model_dump(mode="json", exclude_none=True)
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def digest_of(manifest: Manifest) -> str:
    return hashlib.sha256(text_of(manifest)).hexdigest()


def parsed(ref: str, text: bytes) -> Manifest:
    """The manifest of the backup `ref`. `BrokenChain` for anything that was not written by `text_of`."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BrokenChain(
            f"{manifest_ref(ref)} is no manifest of a backup ({error.error_count()} faults): restore it, or use another backup",
            ref=ref,
        ) from None
    if manifest.ref != ref or text_of(manifest) != text:
        raise BrokenChain(
            f"{manifest_ref(ref)} was changed since it was written, or belongs to {manifest.ref[:200]}: restore it, or use"
            " another backup",
            ref=ref,
        )
    return manifest
