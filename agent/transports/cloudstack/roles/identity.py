"""Who the agent says it is. A management server knows a host by its guid and has it in a zone, a pod and a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from stores.contract import GiB

PROTOCOL = "4.20.0.0"
"""Version of CloudStack whose commands are known here; a server keeps it with the host."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`guid` is a uuid that stays the same. Zone and pod are names or ids; a cluster as well, and one whose name is not known
    to the server is made by it."""

    guid: str
    name: str
    zone: str
    pod: str
    cluster: str | None = None
    reserved_memory: int = GiB  # bytes that guests do not get

    def resource_guid(self, resource: str) -> str:
        """The guid with the name of the class that it stands in for, as servers look it up."""
        return f"{self.guid}-{resource}"
