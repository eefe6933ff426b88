"""What the API shows of the cache. Sizes are bytes, times seconds since the epoch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class PoolShown(_Model):
    """One pool. A sick one has an `ailment` and no numbers of its ledger."""

    name: str
    directory: str
    configured: int  # the limit on disk
    ailment: str | None = None
    limit: int | None = None  # what entries and reservations may take of it
    used: int | None = None
    reserved: int | None = None
    pinned: int | None = None
    dirty: int | None = None
    quarantined: int | None = None
    entries: int | None = None  # how many
    fills: int | None = None  # how many
    waiting: int | None = None  # requests that stand in line for room
    bias: float | None = None  # of the policy; 0 is plain LRU
    holders: list[str] = []  # who has held bytes for the longest
    evictions: dict[str, int]  # since the agent's start, by reason
    quarantinedSinceStart: int
    leaseLosses: int
    strayFiles: int  # in the directory and not the cache's, as the last reconciliation saw it
    strayBytes: int


class PoolsShown(_Model):
    pools: list[PoolShown]


class PinShown(_Model):
    reason: str
    since: float
    lasting: bool  # over restarts, until somebody unpins it


class EntryShown(_Model):
    """One entry. `hold`: why it may not go now. Pins are only listed where one entry is shown."""

    key: str
    pool: str
    store: str
    ref: str
    version: str | None
    size: int
    charge: int  # what it takes on disk at most
    state: str
    hold: str | None
    hits: int
    digest: str | None
    published: float
    used: float
    proved: float  # when its digest was last compared in full
    pins: list[PinShown]


class EntriesPage(_Model):
    """`next`: the key to go on after; absent on the last page."""

    entries: list[EntryShown]
    next: str | None = None


class EntryCopies(_Model):
    """One entry in every pool that has it."""

    entries: list[EntryShown]


class Evicted(_Model):
    key: str
    bytes: int  # that were freed


class CopyShown(_Model):
    """Why one copy is here, and why it may not go: nothing in `stays` means that it may."""

    entry: EntryShown
    here: list[str]
    stays: list[str]


class FillShown(_Model):
    """What is being brought now by this process."""

    key: str
    stage: str
    arrived: int


class Explained(_Model):
    object: str
    copies: list[CopyShown]
    arriving: list[FillShown]
