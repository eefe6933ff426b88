"""Every option of the agent: one pydantic model, from which the commented sample file is generated.

Values come, later ones winning, from the defaults below, the configuration file, its drop-ins and the environment
(`agent.config_load`). Nothing here is a secret: keys and passwords are named by a path, or as `credential:NAME`, which is the
file of that name in systemd's `$CREDENTIALS_DIRECTORY`.

Sizes are bytes, or text with a unit (`"48MiB"`); durations are seconds.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    ByteSize,
    Field,
    IPvAnyNetwork,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from agent.config_hyperv import HypervSection
from agent.config_lvm import LvmSection
from agent.config_nfs import NfsSection
from agent.config_values import AbsolutePath, SecretFile, Section
from agent.config_xen import XenSection
from agent.security import Role
from agent.transports.cloudstack.servers import parse_server
from hypervisors.contract import HypervisorType
from stores.cache.settings import HOUSEKEEPING
from stores.contract import GiB, MiB
from stores.errors import StorageError
from stores.locations import export_name


class AgentSection(Section):
    """The daemon itself."""

    hypervisor: HypervisorType = Field(HypervisorType.KVM, description="The hypervisor of this host.")
    state_dir: AbsolutePath = Field(
        Path("/var/lib/storage-agent"),
        description="Where the command journal lives. Must survive a restart of the host.",
    )
    runtime_dir: AbsolutePath = Field(
        Path("/run/storage-agent"), description="Sockets of the daemon and of the exports that tools read from."
    )
    concurrency: PositiveInt = Field(8, description="Commands that run at the same time; the others wait in the queue.")
    queue_limit: PositiveInt = Field(
        10_000, description="Accepted commands that have not finished; one more is refused as retryable."
    )
    default_deadline_s: PositiveFloat = Field(
        14_400, description="Time a command may take in all, waiting included, when it does not carry `deadline_s`."
    )
    retention_s: PositiveFloat = Field(
        604_800, description="How long the answer of a finished command is kept, and its id answered from the journal."
    )
    retention_count: PositiveInt = Field(
        100_000, description="How many answers are kept; the oldest go first, even before `retention_s`."
    )
    shutdown_s: PositiveFloat = Field(
        20,
        description="Time that running commands get to finish when the daemon is told to stop; then they are cancelled.",
    )


class KvmSection(Section):
    """Guests of KVM."""

    libvirt_uri: str = Field(
        "qemu:///system",
        min_length=1,
        description="The libvirt that has this host's guests, for the disks and ISOs that they get. none: guests are left"
        " alone, and an ISO only becomes a file. Needs storage-agent[kvm].",
    )


class PoolsSection(Section):
    """Where storage pools may be."""

    roots: tuple[AbsolutePath, ...] = Field(
        (Path("/var/lib/storage-agent/pools"),),
        description="Allow-list: pools and image directories must lie in or below one of these directories.",
    )
    mount_root: AbsolutePath = Field(
        Path("/mnt"),
        description="Pools of type NetworkFilesystem are the directories MOUNT_ROOT/UUID, mounted by the host or by [nfs].",
    )
    file_mode: str = Field(
        "0660",
        pattern=r"^0[0-7]{3}$",
        description="Permissions of images, in octal. Group access lets qemu, which runs as another user, open them.",
    )
    nfs_mounts: dict[str, AbsolutePath] = Field(
        {},
        description="NFS exports that are mounted here, for image stores that are named by URL.",
        examples=[{"nfs://nfs.example.org/export/secondary": "/mnt/secondary"}],
    )


class TransferSection(Section):
    """The byte path."""

    memory: ByteSize = Field(
        ByteSize(48 * MiB),
        ge=8 * MiB,
        description="Buffers of all transfers together; what is sent as a stream has 24 MiB beside them.",
    )
    threads: PositiveInt = Field(16, le=256, description="Threads for blocking reads, writes and digests.")
    connections: PositiveInt = Field(4, le=64, description="Connections that one transfer opens to a store.")
    connect_timeout_s: PositiveFloat = Field(10, description="Time to connect, TLS included.")
    read_timeout_s: PositiveFloat = Field(30, description="A connection that sends nothing for this long is given up.")
    attempts: PositiveInt = Field(
        5, le=20, description="Attempts in a row without a byte of progress before a store counts as unavailable."
    )
    scratch_dir: AbsolutePath = Field(
        Path("/var/tmp"),  # noqa: S108 - what is there has no name
        description="On a disk: room for a 250th of what comes only once and goes to S3, from 39 GiB on.",
    )


class UrlsSection(Section):
    """What URLs in commands may point at. Checked again on every redirect; addresses are resolved once and pinned."""

    allow_http: bool = Field(False, description="Allow plain http beside https.")
    allow_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks that are allowed although they are private, loopback or link-local.",
        examples=[["10.0.0.0/8", "fd00::/8"]],
    )
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        (80, 443), description="Ports that a URL may name. Empty: any port."
    )
    max_redirects: int = Field(5, ge=0, le=20, description="Redirects that one request may follow.")
    external_fetch: bool = Field(
        False,
        description="Hand plain URLs to qemu-img for conversions, unseen by this policy. Otherwise the agent fetches.",
    )


class CachePool(Section):
    """One directory of the cache."""

    name: str = Field(
        pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]{0,63}$",
        description="Its name, in metrics and commands; the same on all hosts that share it.",
    )
    directory: AbsolutePath = Field(
        description="A directory of its own. It is made where it is missing, its parent is not."
    )
    limit: ByteSize = Field(
        gt=HOUSEKEEPING,
        description="Real bytes on disk that it never takes more of; 16 MiB of them are for folders and ledger.",
    )
    leave_free: ByteSize = Field(
        ByteSize(0), description="Bytes to leave free on its file system. The stricter of this and `limit` counts."
    )
    high: float = Field(0.95, gt=0, le=1, description="Above this share of the limit entries go in the background...")
    low: float = Field(0.85, gt=0, le=1, description="... until this share is left.")
    max_idle_s: PositiveFloat | None = Field(None, description="Entries that nobody used for so long go.")
    max_age_s: PositiveFloat | None = Field(None, description="Entries that are older go, used or not.")
    mode: str = Field(
        "0600",
        pattern=r"^06[04][04]$",
        description="Permissions of entries, in octal. 0640 lets the directory's group read them: hypervisors that run as"
        " another user.",
    )
    lease_s: float = Field(
        30,
        ge=5,
        description="A process that is silent for so long is taken for dead. The same on all hosts that share it.",
    )
    database: SecretFile | None = Field(
        None,
        description="For a directory that several hosts share: a file that holds the URL of a PostgreSQL database,"
        " postgresql://user:password@host/name. Without it the ledger is an SQLite file in the directory, for one host.",
    )

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and needs to be at most high, which is {self.high:g}")
        return self


class CacheSection(Section):
    """Local copies of objects, for what only works from a file. Without a pool there is no cache."""

    pools: tuple[CachePool, ...] = Field(
        (),
        description="The directories, each with its limit: `name`, `directory` and `limit` are needed.",
        examples=[
            [
                {
                    "name": "local",
                    "directory": "/srv/cache/local",
                    "limit": "100GiB",
                    "leave_free": "20GiB",
                    "max_idle_s": 2592000,
                    "mode": "0640",
                },
                {
                    "name": "shared",
                    "directory": "/mnt/cache/storage-agent",
                    "limit": "2TiB",
                    "database": "credential:cache-ledger",
                },
            ]
        ],
    )
    prefer: tuple[Literal["s3", "image", "nfs"], ...] = Field(
        (),
        description="Types of stores (`storeType`) whose objects are read through the cache even where they could be read"
        " without it: worth it where the same templates are deployed again and again.",
        examples=[["s3"]],
    )
    wait_s: float = Field(
        60,
        ge=0,
        description="Time to wait for room for what only the cache can give; then the command fails, retryable.",
    )
    preferred_wait_s: float = Field(
        5, ge=0, description="The same where the cache is only preferred; then the store itself is read."
    )

    @field_validator("pools")
    @classmethod
    def _apart(cls, value: tuple[CachePool, ...]) -> tuple[CachePool, ...]:
        names = [pool.name for pool in value]
        if len(set(names)) < len(names):
            raise ValueError(f"every pool needs a name of its own, and there are: {', '.join(names)}")
        for pool in value:
            inside = [
                other.name for other in value if other is not pool and other.directory.is_relative_to(pool.directory)
            ]
            if inside:
                raise ValueError(f"the directory of pool {inside[0]} lies in that of pool {pool.name}")
        return value


class UploadsSection(Section):
    """How what was staged in the cache gets to its stores. Nothing of it is ever given up by itself."""

    unstored_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of each cache pool that what no store has yet may take. When it is reached, staging waits for room.",
    )
    concurrency: PositiveInt = Field(4, le=64, description="Uploads at the same time, of all pools together.")
    large: ByteSize = Field(
        ByteSize(GiB),
        gt=0,
        description="Uploads of that size or more leave one of these turns to smaller ones.",
    )
    first_retry_s: PositiveFloat = Field(
        1, description="Longest pause after a first failure; it doubles with each further one..."
    )
    last_retry_s: PositiveFloat = Field(300, description="... up to this. The pause itself is random, and shorter.")
    breaker_failures: PositiveInt = Field(
        3, description="After so many failures in a row, of whatever upload, a store is left alone."
    )
    first_probe_s: PositiveFloat = Field(
        5, description="Then one upload probes it after this time, which doubles with each probe that fails..."
    )
    last_probe_s: PositiveFloat = Field(120, description="... up to this.")
    alarm_s: PositiveFloat = Field(
        3600, description="Age of an upload that is not stored from which on the log says so, as an error."
    )

    @model_validator(mode="after")
    def _first_is_before_last(self) -> Self:
        for what in ("retry", "probe"):
            first, last = getattr(self, f"first_{what}_s"), getattr(self, f"last_{what}_s")
            if first > last:
                raise ValueError(
                    f"first_{what}_s is {first:g} and needs to be at most last_{what}_s, which is {last:g}"
                )
        return self


class ImagesSection(Section):
    """Limits of the image gate."""

    max_virtual_size: ByteSize = Field(
        ByteSize(16 * 1024 * GiB), gt=0, description="Largest disk that an image may declare."
    )


class TlsSection(Section):
    """TLS towards the stores."""

    ca_file: AbsolutePath | None = Field(
        None,
        description="Certificates (PEM) to trust besides those of the system.",
        examples=["/etc/storage-agent/store-ca.pem"],
    )


class SmbSection(Section):
    """SMB shares: image stores with a cifs:// URL, and pools of type SMB. The agent mounts nothing for them."""

    encryption: bool = Field(
        True, description="Refuse servers that do not encrypt, which needs SMB 3. Without it everything is signed."
    )
    authentication: Literal["negotiate", "kerberos", "ntlm"] = Field(
        "negotiate",
        description="`negotiate` is Kerberos where that works, else NTLM. Kerberos needs storage-agent[kerberos].",
    )
    credentials: dict[str, SecretFile] = Field(
        {},
        description="For stores that come without credentials: files with lines username=, password= and domain=, by host or"
        " host/share. After a restart the agent knows no others. Without any, its own Kerberos ticket counts.",
        examples=[{"files.example.org": "credential:smb", "hv1.example.org/vms": "/etc/storage-agent/hv1"}],
    )


class RbdSection(Section):
    """Pools of type RBD: a pool of a Ceph cluster, by Ceph's own Python modules."""

    keyrings: dict[str, SecretFile] = Field(
        {},
        description="For pools that come without user and key: keyrings as `ceph auth get` prints them, by the pool's uuid or"
        " its name in Ceph. After a restart the agent knows no others.",
        examples=[{"cloudstack": "credential:rbd", "6b3a": "/etc/ceph/ceph.client.cloudstack.keyring"}],
    )


class ApiSection(Section):
    """The HTTP API. Listeners that systemd passes take the place of the addresses given here."""

    socket: AbsolutePath = Field(
        Path("/run/storage-agent/api.sock"),
        description="Local API and CLI. Callers are known by their peer credentials.",
    )
    group: str | None = Field(
        None,
        description="Group that owns the socket. Its members may command, and so may root and the agent's own user.",
        examples=["storage-agent"],
    )
    mode: str = Field("0660", pattern=r"^0[0-7]{3}$", description="Permissions of the socket, in octal.")
    users: dict[str, Role] = Field(
        {},
        description="Roles of further local users, by name or number.",
        examples=[{"prometheus": "view", "1500": "operate"}],
    )
    tcp_listen: str | None = Field(
        None,
        description="HOST:PORT of the listener for management servers. It speaks mutual TLS only: needs the next three.",
        examples=["[::]:8250"],
    )
    tls_cert: AbsolutePath | None = Field(
        None, description="The agent's certificate with its chain (PEM).", examples=["/etc/storage-agent/agent.pem"]
    )
    tls_key: SecretFile | None = Field(None, description="Its private key (PEM).", examples=["credential:agent-key"])
    tls_client_ca: AbsolutePath | None = Field(
        None,
        description="The authority whose client certificates are accepted (PEM).",
        examples=["/etc/storage-agent/clients-ca.pem"],
    )
    tls_roles: dict[str, Role] = Field(
        {},
        description="Roles by certificate: `DNS:name`, `URI:...`, `email:...` of the subject's alternative names, "
        "or `CN=name` of the subject. Everybody else is refused.",
        examples=[{"DNS:management.example.org": "command", "CN=monitoring": "view"}],
    )
    max_body: ByteSize = Field(ByteSize(1 * MiB), gt=0, description="Largest request body.")
    max_connections: PositiveInt = Field(256, description="Connections at the same time, over all listeners.")
    request_timeout_s: PositiveFloat = Field(
        30, description="Time to receive a whole request, and to wait for the next one on an idle connection."
    )

    @field_validator("tcp_listen")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            split_listen(value)
        return value

    @field_validator("tls_roles")
    @classmethod
    def _known_names(cls, value: dict[str, Role]) -> dict[str, Role]:
        for name in value:
            if not name.startswith(("DNS:", "URI:", "email:", "CN=")):
                raise ValueError(f"{name!r} needs to begin with DNS:, URI:, email: or CN=")
        return value

    @model_validator(mode="after")
    def _mutual_tls_or_nothing(self) -> Self:
        needed = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "tls_client_ca": self.tls_client_ca}
        missing = [name for name, value in needed.items() if value is None]
        if self.tcp_listen is not None and missing:
            raise ValueError(f"tcp_listen needs mutual TLS, and {', '.join(missing)} is not set")
        return self


class CloudStackSection(Section):
    """The links to Apache CloudStack's management servers. Without a server there are none."""

    servers: tuple[str, ...] = Field(
        (),
        description="The servers, the preferred one first: HOST, HOST:PORT or [IPv6]:PORT. They may send another list.",
        examples=[["ms1.example.org", "ms2.example.org"]],
    )
    port: int = Field(8250, ge=1, le=65535, description="Port of servers that are named without one.")
    roles: tuple[Literal["routing", "secondary-storage"], ...] = Field(
        ("routing",),
        min_length=1,
        description="What the agent is to them: a hypervisor host, a secondary storage VM, or both, each on its own link.",
    )
    zone: str = Field("", description="Zone of this host, by name or id. Needed.", examples=["zone1"])
    pod: str = Field("", description="Its pod, by name or id. Needed.", examples=["pod1"])
    cluster: str | None = Field(
        None,
        description="Its cluster, by id, or by a name, which is made where it is not known. Needed to be a host.",
        examples=["1"],
    )
    guid: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description="What the servers know this host by. Without it one is made, and kept in `agent.state_dir`.",
        examples=["5e6b7c7e-4c39-4a86-8d6c-0f6a54dbd4a3"],
    )
    name: str | None = Field(None, description="Name of this host. Without it: its host name.", examples=["kvm7"])
    storage_vm: str | None = Field(
        None,
        description="Name under which it is a secondary storage VM: that of one which the servers know.",
        examples=["s-1-VM"],
    )
    reserved_memory: ByteSize = Field(ByteSize(GiB), ge=0, description="Memory of this host that guests do not get.")
    ca_file: AbsolutePath | None = Field(
        None,
        description="Certificates (PEM) of the servers, or of the authority that signed them. Nobody else is talked to.",
        examples=["/etc/storage-agent/cloudstack-ca.pem"],
    )
    allow_unverified: bool = Field(
        False,
        description="Talk to whoever answers, until a server has provisioned a certificate and its authority. Commands, and"
        " keys of stores, come over this connection.",
    )
    tls_cert: AbsolutePath | None = Field(
        None,
        description="The agent's certificate with its chain (PEM), until a server provisions another one.",
        examples=["/etc/storage-agent/agent.pem"],
    )
    tls_key: SecretFile | None = Field(None, description="Its private key (PEM).", examples=["credential:agent-key"])
    staging: tuple[str, ...] = Field(
        (),
        description="URLs of `ImageCache` stores that are only names to the agents: what is staged there is read from S3. The"
        " same on all agents of the zone; needs staging_file.",
        examples=[["nfs://staging.invalid/s3"]],
    )
    staging_file: SecretFile | None = Field(
        None,
        description="The same file on all agents of the zone (TOML): `key`, by which they believe one another's paths, and"
        " `stores`, the S3 stores with their keys.",
        examples=["credential:cloudstack-staging"],
    )
    connect_s: PositiveFloat = Field(30, description="Time to connect, TLS included.")
    retry_first_s: PositiveFloat = Field(
        5, description="Longest pause before connecting again; it doubles when all servers were tried in vain..."
    )
    retry_last_s: PositiveFloat = Field(60, description="... up to this. The pause itself is random, and shorter.")

    @field_validator("servers")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for server in value:
            parse_server(server)
        return value

    @field_validator("staging")
    @classmethod
    def _exports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith("nfs://") or _export(url) is None:
                raise ValueError(f"{url!r} needs to have the form nfs://host/export")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.staging) != (self.staging_file is not None):
            raise ValueError("staging and staging_file need one another, and one is not set")
        if not self.servers:
            return self
        needed = {"zone": self.zone, "pod": self.pod}
        if "routing" in self.roles:
            needed["cluster"] = self.cluster or ""
        missing = [name for name, value in needed.items() if not value]
        if missing:
            raise ValueError(f"servers are given, and {', '.join(missing)} is not set")
        if self.ca_file is None and not self.allow_unverified:
            raise ValueError("servers are given, and neither ca_file nor allow_unverified says which are believed")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key need one another, and one is not set")
        return self


class LogFormat(StrEnum):
    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogsSection(Section):
    """Logs go to standard error."""

    format: LogFormat = Field(LogFormat.AUTO, description="auto: console on a terminal, else json (one object a line).")
    level: LogLevel = Field(LogLevel.INFO, description="debug, info, warning or error.")


class Config(Section):
    """The whole configuration; immutable once loaded."""

    agent: AgentSection = AgentSection()
    pools: PoolsSection = PoolsSection()
    lvm: LvmSection = LvmSection()
    transfer: TransferSection = TransferSection()
    urls: UrlsSection = UrlsSection()
    cache: CacheSection = CacheSection()
    uploads: UploadsSection = UploadsSection()
    images: ImagesSection = ImagesSection()
    tls: TlsSection = TlsSection()
    smb: SmbSection = SmbSection()
    rbd: RbdSection = RbdSection()
    kvm: KvmSection = KvmSection()
    xen: XenSection = XenSection()
    hyperv: HypervSection = HypervSection()
    nfs: NfsSection = NfsSection()
    api: ApiSection = ApiSection()
    cloudstack: CloudStackSection = CloudStackSection()
    logs: LogsSection = LogsSection()

    @model_validator(mode="after")
    def _hosts_of_xen(self) -> Self:
        if self.agent.hypervisor is not HypervisorType.XEN:
            return self
        if not self.xen.pools:
            raise ValueError(
                "agent.hypervisor is XenServer, and xen.pools names no pool of hosts: it needs one with name, hosts and"
                " password_file"
            )
        if self.cloudstack.servers and "routing" in self.cloudstack.roles:
            raise ValueError(
                "agent.hypervisor is XenServer, and cloudstack.roles has routing: CloudStack's management servers talk to"
                " XenServer's hosts themselves, and take no agent for one; secondary-storage alone is possible"
            )
        return self

    @model_validator(mode="after")
    def _hosts_of_hyperv(self) -> Self:
        if self.agent.hypervisor is not HypervisorType.HYPERV:
            return self
        if not self.hyperv.hosts:
            raise ValueError(
                "agent.hypervisor is Hyperv, and hyperv.hosts names no host: it needs one with name, address, shares, user and"
                " password_file"
            )
        if self.cloudstack.servers and "routing" in self.cloudstack.roles:
            raise ValueError(
                "agent.hypervisor is Hyperv, and cloudstack.roles has routing: this agent is a gateway and no Hyper-V host;"
                " secondary-storage alone is possible"
            )
        return self

    @model_validator(mode="after")
    def _staged_or_mounted(self) -> Self:
        names = {_export(url) for url in self.cloudstack.staging}
        both = [url for url in self.pools.nfs_mounts if _export(url) in names]
        if both:
            raise ValueError(
                f"{both[0]} is in cloudstack.staging, so only a name, and in pools.nfs_mounts, so a directory"
            )
        return self


def _export(url: str) -> str | None:
    """In one spelling; None for what is no URL of an export."""
    try:
        return export_name(urlsplit(url))
    except (StorageError, ValueError):
        return None


def split_listen(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPv6]:PORT`. ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ValueError("needs HOST:PORT, an IPv6 address in brackets")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host:
        raise ValueError("needs HOST:PORT, an IPv6 address in brackets")
    return host, int(port)
