"""What a command gets whose id was seen before."""

from __future__ import annotations

from agent.commands import Answer
from agent.failures import IdReused
from agent.journal_file import Entry
from stores.cache.writeback.errors import UploadPending


def goes_on(entry: Entry, fingerprint: str) -> bool:
    """Whether that command, sent again, has an upload to wait for."""
    if entry.fingerprint != fingerprint or not entry.state.final:
        return False
    error = entry.told().error
    return error is not None and error.kind == UploadPending.__name__


def replay(entry: Entry, fingerprint: str) -> Answer:
    """Its answer, present or final. `IdReused` where the content differs."""
    if entry.fingerprint != fingerprint:
        raise reused(entry.id)
    return entry.told()


def reused(command_id: str) -> IdReused:
    return IdReused(
        f"command id {command_id} was used before for a command with other content; use a new id", id=command_id
    )
