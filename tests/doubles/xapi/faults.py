"""Switches that make the pool misbehave.

A fault is armed with `Faults.arm` and acts at one step of calls or transfers that match. The table of what may be armed
where stands in the package's docstring.
"""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import dataclass, field
from typing import Literal, get_args

Where = Literal["connect", "rpc", "async", "import", "export"]
Step = Literal["start", "head", "attach", "body", "end", "answer"]
Action = Literal[
    "drop", "delay", "hang", "http", "garbage", "fail", "lose-session", "redirect", "lose-task", "cancel", "short",
    "silent-end", "false-success", "leave-plugged",
]  # fmt: skip

_TRANSFER: set[Action] = {"drop", "delay", "hang", "fail", "cancel", "lose-task"}
_BEFORE: set[Action] = {"drop", "delay", "hang", "http"}
_STEPS: dict[Where, dict[Step, set[Action]]] = {
    "connect": {"start": {"drop", "delay", "hang"}},
    "rpc": {"start": _BEFORE | {"garbage", "fail", "lose-session"}, "answer": _BEFORE | {"garbage"}},
    "async": {"start": {"delay", "hang", "fail", "lose-task", "cancel"}},
    "import": {
        "head": _BEFORE | {"redirect"},
        "attach": _TRANSFER | {"short", "leave-plugged"},
        "body": _TRANSFER | {"silent-end"},
        "end": _TRANSFER | {"silent-end"},
    },
    "export": {
        "head": _BEFORE | {"redirect"},
        "attach": _TRANSFER | {"leave-plugged"},
        "body": _TRANSFER | {"silent-end", "false-success"},
        "end": _TRANSFER | {"silent-end"},
    },
}


def switches() -> set[tuple[str, str, str]]:
    """All there are: where, step, action."""
    return {(where, step, action) for where, steps in _STEPS.items() for step in steps for action in steps[step]}


@dataclass
class Fault:
    """One switch. `skip` matches pass unharmed, then `times` are hit (None: all of them)."""

    where: Where
    step: Step
    action: Action
    match: str = "*"
    """A pattern: for calls of the method ("VDI.*"), for transfers of the VDI's reference or uuid."""
    host: int | None = None
    skip: int = 0
    times: int | None = 1
    at_byte: int = 0
    """For "body": the first byte of the body that is no longer taken or sent. For "short": how many are left out at the end."""
    seconds: float = 0.0
    """For "delay"; for "hang": how long nothing is even read, so that uploads stand still."""
    status: int = 503
    to: str = ""
    """For "redirect": the address, as in `host.address`."""
    error: list[str] = field(default_factory=lambda: ["VDI_IO_ERROR", "Device I/O errors"])
    id: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        for value, allowed in ((self.where, get_args(Where)), (self.step, get_args(Step))):
            if value not in allowed:
                raise ValueError(f"{value!r} is none of {allowed}")
        if self.action not in _STEPS[self.where].get(self.step, set()):
            raise ValueError(f"{self.action!r} cannot happen at {self.where} {self.step}")


class Faults:
    """What is armed now."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._ids = itertools.count(1)

    def arm(self, fault: Fault) -> Fault:
        """Later faults act only where earlier ones let pass."""
        fault.id = next(self._ids)
        self._armed.append(fault)
        return fault

    def disarm(self, number: int | None = None) -> int:
        """One of them, or all. How often they acted."""
        gone = [fault for fault in self._armed if number in (None, fault.id)]
        self._armed = [fault for fault in self._armed if fault not in gone]
        return sum(fault.hits for fault in gone)

    def hit(self, where: Where, step: Step, host: int, *names: str) -> Fault | None:
        """The fault that acts now, which is counted as having acted."""
        for fault in self._armed:
            if (fault.where, fault.step) != (where, step) or fault.host not in (None, host):
                continue
            if not any(fnmatch.fnmatchcase(name, fault.match) for name in names):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is None or fault.hits < fault.times:
                fault.hits += 1
                return fault
        return None
