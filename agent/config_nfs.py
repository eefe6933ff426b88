"""Options about NFS: who mounts, what, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from agent.config_values import AbsolutePath, Section
from stores.errors import StorageError
from stores.mounts.export import checked, export


class NfsSection(Section):
    """NFS: pools of type NetworkFilesystem, and image stores with an nfs:// URL."""

    mounting: Literal["host", "mounter", "agent"] = Field(
        "host",
        description="Who mounts them. host: they are mounted already. mounter: storage-agent-mounter.socket, a small process of"
        " root's. agent: the agent itself, which has to be root, outside of its unit's sandbox.",
    )
    mounter: AbsolutePath = Field(
        Path("/run/storage-agent-mounter.sock"), description="The socket of storage-agent-mounter.socket."
    )
    options: tuple[str, ...] = Field(
        (),
        description="Mount options, before those that a command brings. Only options about the protocol are taken; nosuid,"
        " nodev and noexec hold anyway.",
        examples=[["vers=4.2", "nconnect=4"]],
    )
    exports: tuple[str, ...] = Field(
        (),
        description="What may be mounted, each with all below it. Empty: whatever a command names.",
        examples=[["nfs.example.org:/export"]],
    )

    @field_validator("options")
    @classmethod
    def _are_allowed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return checked(value)
        except StorageError as error:
            raise ValueError(error.message) from None

    @field_validator("exports")
    @classmethod
    def _are_exports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            host, _, path = text.rpartition(":")
            try:
                export(host, path)
            except StorageError as error:
                raise ValueError(f"{text!r}: {error.message}; it is written as host:/path") from None
        return value
