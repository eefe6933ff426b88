"""What is written beside an entry's file: enough to know the object again without the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from stores.cache.ledger import Facts, file_of
from stores.contract import KiB
from stores.errors import IntegrityError, TooLarge

LAYOUT = 1
"""Version of the folders, names and descriptions of a pool. An entry of another layout is never served."""

DESCRIPTION_LIMIT = 4 * KiB
"""Bytes: one block, as the charge of an entry has it (`stores.cache.ledger.METADATA`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """`fill` is the reservation that made the file; `digest` is `{ALGORITHM}hex` over the whole content, if it is known."""

    key: str
    fill: str
    store: str
    ref: str
    version: str | None
    size: int
    digest: str | None
    layout: int = LAYOUT

    @property
    def file(self) -> str:
        return file_of(self.key, self.fill)

    def facts(self, inode: int, mtime_ns: int) -> Facts:
        """What the ledger keeps of it."""
        return Facts(
            key=self.key,
            store=self.store,
            ref=self.ref,
            version=self.version,
            size=self.size,
            digest=self.digest,
            inode=inode,
            mtime_ns=mtime_ns,
        )

    def encode(self) -> bytes:
        """As one JSON object. `TooLarge` when names are so long that it would not fit into its block."""
        data = json.dumps(asdict(self), ensure_ascii=False).encode()
        if len(data) > DESCRIPTION_LIMIT:
            raise TooLarge(
                f"the names of {self.ref[:80]}... take {len(data)} bytes, and a cache entry has {DESCRIPTION_LIMIT} for them",
                limit=DESCRIPTION_LIMIT,
                seen=len(data),
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Description:
        """`IntegrityError` for anything that `encode` of this layout does not write."""
        try:
            values = json.loads(data)
            if set(values) != {field.name for field in fields(cls)} or values["layout"] != LAYOUT:
                raise ValueError(f"its layout is not {LAYOUT}")
            for name in ("key", "fill", "store", "ref"):
                if not isinstance(values[name], str):
                    raise ValueError(f"{name} is not a text")
            if type(values["size"]) is not int or values["size"] < 0:
                raise ValueError("its size is not a number of bytes")
            for name in ("version", "digest"):
                if not isinstance(values[name], str | None):
                    raise ValueError(f"{name} is not a text")
        except (ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(f"not the description of a cache entry: {error}") from None
        return cls(**values)
