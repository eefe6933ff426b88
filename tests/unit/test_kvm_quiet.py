"""A machine is thawed, whatever happens while it is at rest. By a machine that only says what it was told."""

from __future__ import annotations

import libvirt
import pytest

from hypervisors.kvm.quiet import at_rest

AGENT = "<domain><devices><channel><target name='org.qemu.guest_agent.0' state='{state}'/></channel></devices></domain>"


def failure(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("it said no")
    error.err = (code, 0, "it said no", 0, None, None, None, 0, 0)
    return error


class Machine:
    """`freeze`, `thaw`: how often they fail before they do not, and with what."""

    def __init__(self, state: str = "connected", freeze: int | None = None, thaw: tuple[int, ...] = ()) -> None:
        self.told: list[str] = []
        self._state = state
        self._freeze = freeze
        self._thaw = list(thaw)

    def name(self) -> str:
        return "vm"

    def isActive(self) -> int:
        return 1

    def XMLDesc(self) -> str:
        return AGENT.format(state=self._state)

    def agentSetResponseTimeout(self, seconds: int) -> None:
        assert seconds > 0

    def setMetadata(self, kind: int, text: str | None, key: str, uri: str, flags: int) -> None:
        self.told.append("mark" if text else "unmark")

    def fsFreeze(self) -> None:
        self.told.append("freeze")
        if self._freeze is not None:
            raise failure(self._freeze)

    def fsThaw(self) -> None:
        self.told.append("thaw")
        if self._thaw:
            raise failure(self._thaw.pop(0))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_it_is_marked_before_and_thawed_after() -> None:
    machine = Machine()
    with at_rest(machine) as frozen:
        assert frozen
        assert machine.told == ["mark", "freeze"]
    assert machine.told == ["mark", "freeze", "thaw", "unmark"]


def test_also_when_what_was_to_be_done_fails() -> None:
    machine = Machine()
    with pytest.raises(KeyError), at_rest(machine):
        raise KeyError
    assert machine.told[-2:] == ["thaw", "unmark"]


def test_without_an_agent_nothing_is_asked() -> None:
    machine = Machine("disconnected")
    with at_rest(machine) as frozen:
        assert not frozen
    assert machine.told == []


def test_an_agent_that_was_never_reached_need_not_thaw() -> None:
    machine = Machine(freeze=86)
    with at_rest(machine) as frozen:
        assert not frozen
    assert machine.told == ["mark", "freeze", "unmark"]


def test_one_that_was_late_is_thawed() -> None:
    """It may freeze after we have given up."""
    machine, clock = Machine(freeze=112, thaw=(86, 86)), Clock()
    with at_rest(machine, clock=clock, sleep=clock.sleep) as frozen:
        assert not frozen
    assert machine.told == ["mark", "freeze", "thaw", "thaw", "thaw", "unmark"]


def test_one_that_never_thaws_keeps_its_mark() -> None:
    machine, clock = Machine(thaw=(86,) * 1000), Clock()
    with pytest.raises(libvirt.libvirtError), at_rest(machine, clock=clock, sleep=clock.sleep):
        pass
    assert machine.told[-1] == "thaw"
