"""What the API shows of uploads that are still to come or have just ended. Sizes are bytes, times seconds since the epoch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class UploadShown(_Model):
    """One upload as it is now."""

    id: str
    pool: str
    store: str
    ref: str
    command: str  # the id of the command that wrote it
    size: int
    state: str
    created: float
    age: float  # seconds
    attempts: int
    sent: int  # what the store has confirmed
    resumed: int  # of that, what an earlier attempt had sent
    error: dict[str, object] | None = None  # of the latest attempt: kind, message
    nextAttempt: float | None = None  # in so many seconds, of one that waits
    version: str | None = None  # what the store said, of one that is stored
    finished: float | None = None


class UploadsShown(_Model):
    """Per pool, the oldest first. `breakers`: stores that are left alone for a while, or tried again, by their id."""

    uploads: list[UploadShown]
    breakers: dict[str, str] = {}


class Retried(_Model):
    uploads: int  # that are tried now


class Finished(_Model):
    """All uploads of a command that was answered `staged` have ended: what it wrote is `stored`, or some of it was `cancelled`.
    The same event comes again until it is acknowledged."""

    id: str  # of the event, which is that of the command
    event: Literal["stored", "cancelled"]
    uploads: list[UploadShown]


class EventsShown(_Model):
    """Those that nobody has acknowledged, the oldest first."""

    events: list[Finished]


class Drained(_Model):
    """How far the agent is with being emptied. `stored` means that no store waits for anything that this host has."""

    draining: bool
    stored: bool
    commands: int  # accepted and not ended
    uploads: int  # not stored
    bytes: int  # of these
    blocked: int  # of these uploads, those that go on only when an operator has acted
