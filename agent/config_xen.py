"""Where hosts of XenServer and XCP-ng are, and how the agent talks to them."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from agent.config_values import AbsolutePath, SecretFile, Section
from stores.errors import StorageError


class XenPool(Section):
    """One pool of hosts."""

    name: str = Field(
        pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]{0,63}$", description="Its name, in messages. Storage is found by its own."
    )
    hosts: tuple[str, ...] = Field(
        min_length=1,
        description="All of its hosts, whichever is coordinator: https://ADDRESS[:PORT], the address as the pool knows it, or"
        " unix:/PATH of XAPI's socket. No other host gets the password, or data.",
    )
    fingerprints: dict[str, str] = Field(
        {},
        description="SHA-256 of a host's certificate, by the host's URL as above. Then neither its name nor its issuer counts.",
    )
    ca_file: AbsolutePath | None = Field(
        None, description="Certificates (PEM) to trust besides those of the system, for hosts without a fingerprint."
    )
    user: str = Field("root", min_length=1, description="A user of the pool with the role pool-operator.")
    password_file: SecretFile | None = Field(
        None,
        description="A file that holds the password, and nothing else. It is read at each login. Needed, but for a socket.",
    )
    connect_timeout_s: PositiveFloat = Field(30, description="Time to connect, TLS included.")
    call_timeout_s: PositiveFloat = Field(
        300, description="Time for one call. Long: XAPI lets calls wait rather than refusing them."
    )
    attach_timeout_s: PositiveFloat = Field(
        60, description="Time until a host answers a transfer; attaching a disk takes its time."
    )
    stall_timeout_s: PositiveFloat = Field(
        120, description="A transfer that does not move a byte for this long is given up."
    )
    grace_s: PositiveFloat = Field(
        60,
        description="Time that a host gets to end a transfer whose client is gone, before its disk is detached from it.",
    )
    lock_s: float = Field(
        120,
        ge=10,
        description="How long a name that is being written stays locked to other agents when this one dies. The same on all"
        " agents of the pool, whose clocks may differ by a quarter of it.",
    )

    verify_imports: bool = Field(
        False,
        description="Read each disk that was written back from its host, and compare. It takes about as long again. For storage"
        " that is not trusted: a host says that a disk is written whether or not its storage kept it.",
    )

    @field_validator("hosts")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            _check_host(host)
        if len(set(value)) < len(value):
            raise ValueError("names a host twice")
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        for host, fingerprint in self.fingerprints.items():
            if host not in self.hosts:
                raise ValueError(f"fingerprints names {host}, which hosts does not; there are: {', '.join(self.hosts)}")
            _check_host(host, fingerprint)
        if self.password_file is None and not all(host.startswith("unix:") for host in self.hosts):
            raise ValueError(f"pool {self.name} needs a password_file")
        return self


class XenSection(Section):
    """XenServer and XCP-ng. Storage is found by its uuid or name, in whichever pool it is."""

    pools: tuple[XenPool, ...] = Field(
        (),
        description="The pools of hosts: `name`, `hosts` and `password_file` are needed.",
        examples=[
            [
                {
                    "name": "pool1",
                    "hosts": ["https://192.0.2.11", "https://192.0.2.12"],
                    "ca_file": "/etc/storage-agent/xen-ca.pem",
                    "user": "storage-agent",
                    "password_file": "credential:xen-pool1",
                },
                {
                    "name": "lab",
                    "hosts": ["https://192.0.2.21"],
                    "fingerprints": {"https://192.0.2.21": "3b" * 32},
                    "password_file": "/etc/storage-agent/xen-lab",
                },
            ]
        ],
    )
    originator: str | None = Field(
        None,
        pattern=r"^[!-~]{1,100}$",
        description="What the pools know this agent by. By it an agent finds what it left when it died, so no other may have"
        " it. Without it one is made of the machine's names and `agent.state_dir`.",
        examples=["storage-agent@gateway1"],
    )

    @field_validator("pools")
    @classmethod
    def _apart(cls, value: tuple[XenPool, ...]) -> tuple[XenPool, ...]:
        names = [pool.name for pool in value]
        if len(set(names)) < len(names):
            raise ValueError(f"every pool needs a name of its own, and there are: {', '.join(names)}")
        hosts = [host for pool in value for host in pool.hosts]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named in two pools")
        return value


def _check_host(url: str, fingerprint: str | None = None) -> None:
    """Imported only where there are hosts: it takes time."""
    from hypervisors.xen.hosts import parse_host

    try:
        parse_host(url, fingerprint)
    except StorageError as error:
        raise ValueError(error.message) from None
