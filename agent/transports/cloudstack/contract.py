"""What a link needs of the role that the agent has towards a management server, and what it tells to whoever watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agent.commands import Failure
from agent.transports.cloudstack.json_codec import Decoded
from agent.transports.cloudstack.models import Envelope, WireAnswer, WireCommand
from agent.transports.cloudstack.models_session import PingCommand, StartupCommand
from agent.transports.cloudstack.wire import Message


class Role(Protocol):
    """A hypervisor host, or a secondary storage VM. The link speaks the protocol; this is who it speaks for."""

    @property
    def name(self) -> str:
        """For logs and people."""
        ...

    def introduction(self, local_address: str) -> Sequence[StartupCommand]:
        """Who connects, the main command first. `local_address`: this host's, on the way to the server. The link itself fills
        in the servers it knows and whether the connection was transferred."""
        ...

    def ping(self, host_id: int) -> PingCommand:
        """Asked for at every interval: has to be at hand."""
        ...

    async def execute(self, command: WireCommand, *, within_s: float) -> WireAnswer:
        """Everything that the link does not answer itself. After `within_s` nobody waits for the answer any more, and the
        call is cancelled; that leaves nothing behind. A failure is an answer; what is raised is told as one."""
        ...


class Watcher(Protocol):
    """Sees every message, before it is sent and as it came; that a server took the agent in (`up`); and the end of every
    connection, that of an attempt to make one included (`down`), with the reason where it is a failure."""

    def sent(self, message: Message, items: Sequence[Envelope]) -> None: ...

    def received(self, message: Message, items: Sequence[Decoded]) -> None: ...

    def up(self) -> None: ...

    def down(self, failure: Failure | None) -> None: ...
