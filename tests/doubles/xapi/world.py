"""One pool: its database, storage and hosts, and what every call can reach of them."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.doubles.xapi.database import Database
from tests.doubles.xapi.faults import Faults
from tests.doubles.xapi.schema import NULL
from tests.doubles.xapi.settings import GiB, Settings
from tests.doubles.xapi.storage import KINDS, Storage
from tests.doubles.xapi.tasks import Clock, Sessions, Tasks
from tests.doubles.xapi.tls import Authority


@dataclass
class Transfer:
    """What came over a data handler's connection, for tests to look at."""

    kind: str
    host: int
    format: str = "raw"
    vdi: str = ""
    """The uuid."""
    base: str = ""
    status: int = 0
    credential: str = ""
    """How the client said who it is: "cookie", "query", "basic", "socket", or nothing."""
    task: str = ""
    body: int = 0
    """Bytes of the body taken, or sent."""
    address: str = ""
    """Where a 302 pointed to."""


@dataclass(frozen=True)
class Caller:
    """Who makes a call, by way of which host."""

    host: int
    session: str
    local: bool = False
    task: str = ""
    """The call's task: a real one where it was made by its `Async.` name."""


@dataclass
class World:
    """`hosts` are references in the order of their numbers."""

    settings: Settings
    folder: Path
    db: Database = field(default_factory=Database)
    faults: Faults = field(default_factory=Faults)
    clock: Clock = field(default_factory=Clock)
    authority: Authority = field(default_factory=Authority)
    hosts: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    transfers: list[Transfer] = field(default_factory=list)
    json_numbers: bool = True

    def __post_init__(self) -> None:
        self.json_numbers = self.settings.json_numbers
        self.tasks = Tasks(self.db, self.clock)
        self.sessions = Sessions(self.db, self.clock, self.settings.user, self.settings.password)
        self.storage = Storage(self.db, self.clock, self.settings, self.folder)

    @property
    def pool(self) -> str:
        return self.db.refs("pool")[0]

    @property
    def coordinator(self) -> int:
        return self.hosts.index(self.db.field("pool", self.pool, "master"))

    def address(self, host: int) -> str:
        """As in `host.address`; with the port, since all hosts are at 127.0.0.1."""
        return str(self.db.field("host", self.hosts[host], "address"))

    def host_name(self, host: int) -> str:
        return str(self.db.field("host", self.hosts[host], "hostname"))

    def furnish(self, addresses: list[str]) -> None:
        """Hosts at `addresses`, and what a small pool has: shared and local storage, ISOs, a network, a guest."""
        software = {"product_brand": "XCP-ng", "product_version": "8.3.0", "xapi": "24.11"}
        network = self.db.add("network", name_label="Pool-wide network associated with eth0")
        for number, address in enumerate(addresses):
            host = self.db.add(
                "host",
                name_label=f"host-{number}",
                hostname=f"host-{number}.pool.example",
                address=address,
                software_version=software,
            )
            domain = self.db.add(
                "VM",
                name_label=f"Control domain on host: host-{number}",
                is_control_domain=True,
                power_state="Running",
                resident_on=host,
            )
            self.db.change("host", host, control_domain=domain)
            self.db.add("PIF", host=host, network=network, IP=address.partition(":")[0])
            self.hosts.append(host)
        self.db.add("pool", name_label="pool", master=self.hosts[0])
        formats = ["vhd", "raw", "qcow2"] if self.settings.qcow2 else ["vhd", "raw"]
        for kind in KINDS:
            self.db.add(
                "SM",
                type=kind,
                name_label=kind.upper(),
                driver_filename=f"/opt/xensource/sm/{kind.upper()}SR",
                capabilities=["VDI_CREATE", "VDI_DELETE", "VDI_SNAPSHOT", "VDI_CLONE", "VDI_RESIZE"],
                features={"VDI_CREATE": 1, "VDI_DELETE": 1, "VDI_SNAPSHOT": 1, "VDI_CLONE": 1, "VDI_RESIZE": 1},
                supported_image_formats=formats,
            )
        self._furnish_storage()
        self.db.add("VM", name_label="guest")

    def _furnish_storage(self) -> None:
        everywhere = list(self.hosts)
        nfs = self.storage.add_sr("nfs", "shared", self.settings.nfs_size)
        lvm = self.storage.add_sr("lvmoiscsi", "blocks", self.settings.lvm_size)
        iso = self.storage.add_sr("iso", "isos", 64 * GiB)
        self.db.change("pool", self.pool, default_SR=nfs)
        for sr in (nfs, lvm, iso):
            for host in everywhere:
                self.db.add("PBD", host=host, SR=sr, currently_attached=True)
        for number, host in enumerate(everywhere):
            local = self.storage.add_sr("ext", f"local-{number}", self.settings.ext_size)
            self.db.add("PBD", host=host, SR=local, currently_attached=True)

    def sees(self, host: int, sr: str) -> bool:
        return self.hosts[host] in self.storage.hosts_of(sr)

    def dummy_task(self, label: str) -> str:
        """What stands for the task of a call that has none in the database."""
        return f"DummyRef:|{uuid.uuid4()}|{label}"

    def is_running(self, vm: str) -> bool:
        return vm != NULL and self.db.field("VM", vm, "power_state") == "Running"

    def collect(self) -> None:
        """What XAPI forgets by itself."""
        self.tasks.collect()
        self.sessions.collect()
