"""Messages as people may see them: one JSON text, secrets masked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from agent.commands import Failure
from agent.logs import redact
from agent.transports.cloudstack.json_codec import Decoded, Refused, Unknown
from agent.transports.cloudstack.models import Envelope
from agent.transports.cloudstack.wire import Message

_log = structlog.get_logger(__name__)


def masked(items: Sequence[Decoded]) -> str:
    """What the models know as a secret is `***`, and so is what looks like one in texts and tables."""
    return json.dumps([{_name(item): _fields(item)} for item in items], separators=(",", ":"))


def _name(item: Decoded) -> str:
    return item.java or "?"


def _fields(item: Decoded) -> Any:
    match item:
        case Unknown():
            return "not known"
        case Refused():
            return redact(item.error.message)
    return redact(item.model_dump(mode="json", by_alias=True, exclude_unset=True))


class LogWatcher:
    """Every message in the log, for those who ask for `debug`. Ups and downs are logged by the link, and told to `ready`."""

    def __init__(self, role: str, ready: Callable[[bool], None]) -> None:
        self._role = role
        self._ready = ready
        ready(False)

    def sent(self, message: Message, items: Sequence[Envelope]) -> None:
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            _log.debug("link sent", role=self._role, sequence=message.sequence, text=masked(items))

    def received(self, message: Message, items: Sequence[Decoded]) -> None:
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            _log.debug("link received", role=self._role, sequence=message.sequence, text=masked(items))

    def up(self) -> None:
        self._ready(True)

    def down(self, failure: Failure | None) -> None:
        self._ready(False)
