"""Where Hyper-V hosts are, how the agent drives them, and which shares their disks are on."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from agent.config_values import AbsolutePath, SecretFile, Section


class HypervHost(Section):
    """One host."""

    name: str = Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]{0,63}$", description="Its name, in messages.")
    address: str = Field(min_length=1, description="Where it listens for PowerShell remoting over TLS.")
    port: int = Field(5986, ge=1, le=65535, description="The port there.")
    shares: dict[str, str] = Field(
        min_length=1,
        description="Shares, SERVER/SHARE or SERVER/SHARE/FOLDER as pools name them, and the path by which the host's machines"
        " have what lies there.",
    )
    auth: Literal["negotiate", "kerberos", "certificate"] = Field(
        "negotiate",
        description="negotiate (Kerberos where there is a ticket, NTLM otherwise), kerberos, or certificate.",
    )
    user: str | None = Field(None, description="A user of the host, DOMAIN\\USER or USER@REALM.")
    password_file: SecretFile | None = Field(
        None, description="A file that holds the password, and nothing else. It is read for each new shell."
    )
    certificate: AbsolutePath | None = Field(None, description="For certificate: the agent's own (PEM).")
    key: AbsolutePath | None = Field(None, description="For certificate: its key (PEM).")
    ca_file: AbsolutePath | None = Field(
        None, description="Certificates (PEM) to trust for the host instead of the system's."
    )
    fingerprint: str | None = Field(
        None,
        pattern=r"^[0-9A-Fa-f]{64}$",
        description="SHA-256 of the host's certificate. Then neither its name nor its issuer counts.",
    )
    configuration: str = Field(
        "Microsoft.PowerShell",
        min_length=1,
        description="The PowerShell endpoint, where it is one for the agent alone.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.auth == "negotiate" and (self.user is None or self.password_file is None):
            raise ValueError(f"host {self.name} needs a user and a password_file")
        if self.auth == "certificate" and (self.certificate is None or self.key is None):
            raise ValueError(f"host {self.name} needs a certificate and its key")
        return self

    @field_validator("shares")
    @classmethod
    def _paths(cls, value: dict[str, str]) -> dict[str, str]:
        from hypervisors.hyperv.settings import check_path

        for share, path in value.items():
            if len([part for part in share.split("/") if part]) < 2:
                raise ValueError(f"{share} is no share: SERVER/SHARE or SERVER/SHARE/FOLDER")
            check_path(path)
        return value


class HypervSection(Section):
    """Hyper-V. A pool is an SMB share; the host that has it is found by its name."""

    hosts: tuple[HypervHost, ...] = Field(
        (),
        description="The hosts: `name`, `address` and `shares` are needed, and what `auth` asks for.",
        examples=[
            [
                {
                    "name": "hv1",
                    "address": "hv1.example.com",
                    "user": "EXAMPLE\\storage-agent",
                    "password_file": "credential:hyperv-hv1",
                    "shares": {"hv1.example.com/vms": "D:\\vms"},
                }
            ]
        ],
    )

    @field_validator("hosts")
    @classmethod
    def _apart(cls, value: tuple[HypervHost, ...]) -> tuple[HypervHost, ...]:
        names = [host.name for host in value]
        if len(set(names)) < len(names):
            raise ValueError(f"every host needs a name of its own, and there are: {', '.join(names)}")
        shares = [share.strip("/").lower() for host in value for share in host.shares]
        twice = sorted({share for share in shares if shares.count(share) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is a share of two hosts; of a cluster, name one of them")
        return value
