"""Switches that make the host misbehave: over the wire, by the message; in PowerShell, by the script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Message = Literal["connect", "Create", "Receive", "Command", "Send", "Signal", "Delete", "*"]
Action = Literal["drop", "hang", "unauthorised", "http", "fault", "delay"]


@dataclass
class WireFault:
    """At messages of that kind. `skip` matches pass unharmed, then `times` are hit (None: all)."""

    message: Message = "*"
    when: Literal["before", "after"] = "before"
    """Whether the host has acted on the message: what is dropped after it, has happened."""
    action: Action = "drop"
    skip: int = 0
    times: int | None = 1
    status: int = 503
    """For "http"."""
    code: int = 2150858843
    """For "fault"; the default: there is no such shell."""
    seconds: float = 0.0
    """For "delay"."""
    hits: int = 0


@dataclass
class ScriptFault:
    """At scripts of that name: an answer with `ok` false, before or `after` it was carried out."""

    script: str
    id: str = ""
    hresult: int = 0
    after: bool = False
    """It is carried out, and then the script never ends."""
    times: int | None = 1
    hits: int = 0


class Faults:
    """What is armed now, and how many messages there have been."""

    def __init__(self) -> None:
        self.wire: list[WireFault] = []
        self.scripts: list[ScriptFault] = []
        self.messages: list[str] = []

    def at(self, message: str, when: str) -> WireFault | None:
        if when == "before" and message != "connect":
            self.messages.append(message)
        for fault in self.wire:
            if (
                fault.message not in (message, "*")
                or fault.when != when
                or (fault.message == "*" and message == "connect")
            ):
                continue
            if fault.skip:
                fault.skip -= 1
            elif fault.times is None or fault.hits < fault.times:
                fault.hits += 1
                return fault
        return None

    def of_script(self, name: str) -> ScriptFault | None:
        for fault in self.scripts:
            if fault.script in (name, "*") and (fault.times is None or fault.hits < fault.times):
                fault.hits += 1
                return fault
        return None
