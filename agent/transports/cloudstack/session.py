"""One connection's life as the protocol has it: introduction, readiness, pings. Decisions only; the time comes in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.transports.cloudstack.errors import LinkLost, LinkRejected
from agent.transports.cloudstack.models_session import ReadyCommand, StartupAnswer

SILENCE = 2.5  # intervals; a server takes an agent for dead after as many
DEFAULT_INTERVAL_S = 60  # where the server does not say
MOST_INTERVAL_S = 3600


class Phase(Enum):
    INTRODUCING = "introducing"
    INTRODUCED = "introduced"  # answered: pings begin, and the server looks at the host
    READY = "ready"  # taken in


@dataclass
class Session:
    """Times are seconds of one monotonic clock."""

    connected_at: float
    host_id: int = -1
    answer_within_s: float = 60
    phase: Phase = Phase.INTRODUCING
    interval_s: float = DEFAULT_INTERVAL_S

    def __post_init__(self) -> None:
        self._heard_at = self.connected_at
        self._next_ping: float | None = None

    def heard(self, now: float) -> None:
        """Anything at all arrived."""
        self._heard_at = now

    def introduced(self, answer: StartupAnswer, now: float) -> None:
        """The server answered the introduction. Comes again, with the real id, after a ping's answer asked for another one.
        LinkRejected when it says no."""
        if not answer.result:
            raise LinkRejected(f"the management server refuses this agent: {answer.details or 'it does not say why'}")
        if answer.hostId > 0:
            self.host_id = answer.hostId
        if self.phase is Phase.INTRODUCING:
            self.phase = Phase.INTRODUCED
            self.interval_s = (
                min(answer.pingInterval, MOST_INTERVAL_S) if answer.pingInterval > 0 else DEFAULT_INTERVAL_S
            )
            self._next_ping = now + self.interval_s

    def ready(self, command: ReadyCommand) -> None:
        """Comes twice. LinkRejected when it says that the host was not taken in."""
        if command.refusal:
            raise LinkRejected(f"the management server refuses this agent: {command.refusal}")
        if command.hostId and command.hostId > 0:
            self.host_id = command.hostId
        self.phase = Phase.READY

    def ping_due(self, now: float) -> bool:
        """Whether to ping now. Intervals are counted from the first one, so that lateness does not add up; those that were
        missed altogether are left out. LinkLost when the server was silent for too long."""
        silence = now - self._heard_at
        if silence >= self.patience_s:
            raise LinkLost(
                f"the management server said nothing for {silence:.0f} s, and {self.patience_s:g} s are allowed"
            )
        if self._next_ping is None or now < self._next_ping:
            return False
        missed = (now - self._next_ping) // self.interval_s
        self._next_ping += (missed + 1) * self.interval_s
        return True

    def wait_s(self, now: float) -> float:
        """Until `ping_due` has to be asked again."""
        due = self._heard_at + self.patience_s
        if self._next_ping is not None:
            due = min(due, self._next_ping)
        return max(due - now, 0)

    @property
    def patience_s(self) -> float:
        """How long the server may be silent, or take nothing."""
        return self.answer_within_s if self.phase is Phase.INTRODUCING else SILENCE * self.interval_s
