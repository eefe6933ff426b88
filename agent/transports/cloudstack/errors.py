"""What can go wrong between this agent and a management server."""

from __future__ import annotations

from agent.failures import InvalidCommand
from stores.errors import Retry, StorageError


class LinkError(StorageError):
    """The link to a management server ended or could not be made. The agent connects again by itself."""

    retry = Retry.YES


class LinkProtocolError(LinkError):
    """The peer sent what the protocol does not allow; the connection was closed."""


class LinkLost(LinkError):
    """The connection could not be made, broke, or nothing was heard on it for too long."""


class LinkRejected(LinkError):
    """The management server knows who connected, and will not have this agent as it introduced itself."""

    retry = Retry.OPERATOR


class ContentRefused(InvalidCommand):
    """A message, or one command of it, cannot be understood. Nothing of it was run."""
