"""Removing a file for certain, also where a connection that broke still has it open on the server."""

from __future__ import annotations

import time

from smbprotocol.exceptions import SMBResponseException

from stores.backends.smb_calls import LOOK, opened, remove
from stores.backends.smb_errors import DELETE_PENDING, IS_A_DIRECTORY, MISSING, NOT_A_DIRECTORY, status_of
from stores.backends.smb_link import Link

_PATIENCE_S = 10.0  # servers close what a connection had open soon after it ended
_POLL_S = 0.02


def remove_at_last(link: Link, path: str) -> bool:
    """Whether there was such a file. It is gone when this returns; if somebody keeps it open for long, nobody can open it any
    more, and it goes with their handle."""
    try:
        remove(link, path)
    except SMBResponseException as error:
        status = status_of(error)
        if status not in MISSING | {IS_A_DIRECTORY, NOT_A_DIRECTORY}:
            raise
        if status != DELETE_PENDING:
            return False
    deadline = time.monotonic() + _PATIENCE_S
    while _is_going(link, path) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return True


def _is_going(link: Link, path: str) -> bool:
    try:
        with opened(link, path, LOOK, 0):
            return False
    except SMBResponseException as error:
        return status_of(error) == DELETE_PENDING
