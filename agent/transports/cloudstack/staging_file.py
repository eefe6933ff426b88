"""The file that all agents of a zone share for staging: how they know one another's paths, and their S3 stores.

TOML. `key` is any text of at least 32 characters; each of `stores` has the fields of an `S3TO`. What an agent makes of its own
goes to the first of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from agent.security import SecuritySetup
from agent.transports.cloudstack.staging_paths import store_mark
from stores.errors import InvalidReference, PolicyRefused, StorageError
from stores.locations import export_name, split_url
from stores.secret import Secret
from stores.to import S3TO, DataStoreRole, DataStoreTO

_LIMIT = 256 * 1024  # bytes of such a file
_KEY_LENGTH = 32


class _Store(S3TO):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    key: Secret
    stores: tuple[_Store, ...] = Field(min_length=1)

    @field_validator("key")
    @classmethod
    def _long(cls, value: Secret) -> Secret:
        if len(value.reveal()) < _KEY_LENGTH:
            raise ValueError(f"needs at least {_KEY_LENGTH} characters")
        return value


@dataclass(frozen=True)
class Zone:
    """What the agents of a zone agree on. `exports`: the `ImageCache` stores that are only names, as `export_name` has them."""

    key: Secret
    stores: Mapping[bytes, S3TO]
    """By their marks; the first is the one that takes what agents make of their own."""
    exports: Collection[str]
    store_id: Callable[[S3TO], str]

    def only_a_name(self, to: DataStoreTO) -> bool:
        """Whether this `ImageCache` store has no directory behind it."""
        if to.storeType != "nfs" or to.role is not DataStoreRole.IMAGE_CACHE:
            return False
        try:
            url = split_url(to.url)
            return url.scheme == "nfs" and export_name(url) in self.exports
        except InvalidReference:
            return False  # whoever opens it says what is wrong with it

    def mark_of(self, to: S3TO) -> bytes:
        """`PolicyRefused` for a store that the agents could not read again without being told its keys."""
        mark = store_mark(self.store_id(to))
        self.store(mark, to.bucketName)
        return mark

    def store(self, mark: bytes, name: str = "that this path is in") -> S3TO:
        """With the keys that the file has for it."""
        found = self.stores.get(mark)
        if found is None:
            raise PolicyRefused(
                f"the S3 store {name} is not in cloudstack.staging_file, and a management server does not send the keys for"
                " what is staged: add it there, on all agents of the zone"
            )
        return found


def read_zone(file: Path, exports: Collection[str], store_id: Callable[[S3TO], str]) -> Zone:
    """Blocking. `exports`: NFS URLs. `store_id`: the id of the store that an S3TO means. `SecuritySetup` says what is wrong
    with the file, and shows nothing of it."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_LIMIT + 1)
        found = _File.model_validate(tomllib.loads(content[:_LIMIT].decode()))
        stores = {store_mark(store_id(to)): S3TO.model_validate(dict(to)) for to in found.stores}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError, StorageError) as error:
        # Not chained: the text around a mistake may be a secret.
        raise SecuritySetup(
            f"cloudstack.staging_file {file} cannot be used: {_reason(error)}", file=str(file)
        ) from None
    names = frozenset(export_name(split_url(Secret(url))) for url in exports)
    return Zone(found.key, stores, names, store_id)


def _reason(error: Exception) -> str:
    match error:
        case OSError():
            return error.strerror or "it cannot be read"
        case StorageError():
            return error.message
        case ValidationError():
            return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        case _:
            return "it is not TOML"
