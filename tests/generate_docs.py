"""The tables of docs/ that follow from the code, written between markers in the pages.

    python -m tests.generate_docs

rewrites them; `tests/test_docs.py` fails while a page differs from what this module makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config import Config
from agent.wiring import hyperv_hosts, xen_pools
from hypervisors.contract import (
    HypervisorHandler,
    HypervisorType,
    ImageSpec,
    Operation,
    OperationUnsupported,
)
from hypervisors.images.formats import DRIVERS
from hypervisors.primary import on_devices
from hypervisors.registry import handlers
from hypervisors.xen.selftest.run import CHECKS
from stores.contract import DataStore, Kind, ObjectInfo
from stores.resolver import SUPPORTED, Resolver, Via, negotiate
from stores.secret import Secret
from stores.settings import LvmSettings, StoreSettings
from stores.to import S3TO, DataStoreTO, ImageFormat, ImageStoreTO, NfsTO, PrimaryDataStoreTO, SwiftTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine

DOCS = Path(__file__).parents[1] / "docs"

_BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A store, and one object in it."""

    name: str
    store: DataStore
    info: ObjectInfo
    pool: bool = False


@dataclass(frozen=True)
class Case:
    """One row of the table of acceptances."""

    operation: Operation
    what: str
    source: ImageSpec
    target: ImageSpec
    places: Callable[[Place], bool] = lambda place: True


_POOLS: Mapping[HypervisorType, Sequence[tuple[str, PrimaryDataStoreTO, bool]]] = {
    HypervisorType.KVM: (
        ("directory pool", PrimaryDataStoreTO(uuid="p", poolType="Filesystem", path="/srv/pool"), True),
        ("NetworkFilesystem pool", PrimaryDataStoreTO(uuid="n", poolType="NetworkFilesystem"), True),
        ("RBD pool", PrimaryDataStoreTO(uuid="r", poolType="RBD", host="mon", path="pool"), True),
        ("LVM or CLVM pool", PrimaryDataStoreTO(uuid="l", poolType="LVM", path="/vg"), True),
        ("Iscsi pool", PrimaryDataStoreTO(uuid="i", poolType="Iscsi", host="host"), True),
        ("Block pool", PrimaryDataStoreTO(uuid="b", poolType="Block", path="/srv/devices"), True),
        # A source like any other: its pools have to be directories.
        ("SMB pool", PrimaryDataStoreTO(uuid="s", poolType="SMB", host="host", path="/share"), False),
    ),
    HypervisorType.HYPERV: (
        ("share of a host", PrimaryDataStoreTO(uuid="h", poolType="SMB", host="host", path="/vms"), True),
    ),
    HypervisorType.XEN: (("SR", PrimaryDataStoreTO(uuid="sr", poolType="PreSetup"), True),),
}


def _handlers(engine: TransferEngine) -> Sequence[HypervisorHandler]:
    """All that there are, made as the daemon makes them."""
    host = {"name": "h", "address": "host", "auth": "kerberos", "shares": {"host/vms": "D:\\vms"}}
    config = Config.model_validate(
        {"xen": {"pools": [{"name": "p", "hosts": ["unix:/xapi"]}]}, "hyperv": {"hosts": [host]}}
    )
    made = handlers(
        engine,
        ToolRunner(),
        Path("/run"),
        xen=xen_pools(config),
        hyperv=hyperv_hosts(config),
        shares=Resolver(StoreSettings(), engine).store,
    )
    return list(made.values())


def _places(engine: TransferEngine, *of: HypervisorHandler) -> list[Place]:
    """Every store that there is for these hypervisors, made as the daemon makes it. Nothing is contacted."""
    settings = StoreSettings(
        roots=(Path("/srv"),),
        nfs_mounts={"nfs://host/export": Path("/mnt/export")},
        lvm=LvmSettings(groups=frozenset({"vg"})),
    )
    resolver = Resolver(settings, engine)

    def store_of(to: PrimaryDataStoreTO, handler: HypervisorHandler) -> DataStore:
        pool = handler.pool(to)
        return pool.store if pool is not None else resolver.store(to)

    pools = [(name, store_of(to, handler), own) for handler in of for name, to, own in _POOLS[handler.type]]
    images: Sequence[tuple[str, DataStoreTO]] = (
        ("image directory (`file://`)", ImageStoreTO(uri=Secret("file:///srv/images"))),
        ("mounted NFS export", NfsTO.model_validate({"_url": "nfs://host/export"})),
        ("SMB share", NfsTO.model_validate({"_url": "cifs://host/share"})),
        ("HTTP(S)", ImageStoreTO(uri=Secret("https://images.example.org/base"))),
        ("S3", S3TO(bucketName="templates")),
        ("Swift", SwiftTO(url="https://swift.example.org/auth/v1.0", account="a", userName="u", key=Secret("k"))),
    )
    places = []
    for name, store, pool in (*pools, *((name, resolver.store(to), False) for name, to in images)):
        places.append(Place(name, store, ObjectInfo("object", 1 << 30), pool))
        without = ObjectInfo("object", 1 << 30, ranges=False)
        if store.offers(without) != store.offers():
            places.append(Place(f"{name} without ranges", store, without, pool))
    return places


_QCOW2, _RAW, _ISO = (ImageFormat.QCOW2, ImageFormat.RAW, ImageFormat.ISO)
_VHD, _VHDX = (ImageFormat.VHD, ImageFormat.VHDX)
_KVM = (
    Case(Operation.COPY_TEMPLATE, "same format", ImageSpec(_QCOW2), ImageSpec(_QCOW2)),
    Case(Operation.COPY_TEMPLATE, "converted", ImageSpec(_VHD), ImageSpec(_QCOW2)),
    Case(
        Operation.COPY_TEMPLATE,
        "compressed, same format",
        ImageSpec(_QCOW2, compression="gzip"),
        ImageSpec(_QCOW2),
        lambda place: not place.pool,
    ),
    Case(
        Operation.COPY_TEMPLATE,
        "compressed, converted",
        ImageSpec(_VHD, compression="gzip"),
        ImageSpec(_QCOW2),
        lambda place: not place.pool,
    ),
    Case(
        Operation.LINK_TEMPLATE,
        "inside one pool",
        ImageSpec(_QCOW2),
        ImageSpec(_QCOW2),
        lambda place: place.pool,
    ),
    Case(Operation.COPY_VOLUME, "same format", ImageSpec(_QCOW2), ImageSpec(_QCOW2)),
    Case(Operation.COPY_VOLUME, "converted", ImageSpec(_RAW), ImageSpec(_QCOW2)),
    Case(
        Operation.SNAPSHOT,
        "also of running VMs, of files",
        ImageSpec(_QCOW2),
        ImageSpec(_QCOW2),
        lambda place: place.pool,
    ),
    Case(Operation.BACK_UP, "whole, or what changed", ImageSpec(_QCOW2), ImageSpec(_QCOW2), lambda place: place.pool),
    Case(Operation.EXPORT_VOLUME, "no guest running", ImageSpec(_QCOW2), ImageSpec(_QCOW2), lambda place: place.pool),
    Case(
        Operation.RESTORE,
        "with all that it builds on",
        ImageSpec(_QCOW2),
        ImageSpec(_QCOW2),
        lambda place: not place.pool,
    ),
    Case(Operation.ATTACH_ISO, "no guest running", ImageSpec(_ISO), ImageSpec(_ISO)),
)

_XEN = (
    Case(Operation.COPY_TEMPLATE, "VHD, RAW", ImageSpec(_VHD), ImageSpec(_VHD)),
    Case(
        Operation.COPY_TEMPLATE,
        "VHD, RAW, compressed",
        ImageSpec(_VHD, compression="gzip"),
        ImageSpec(_VHD),
        lambda place: not place.pool,
    ),
    Case(
        Operation.COPY_TEMPLATE,
        "QCOW2",
        ImageSpec(_QCOW2),
        ImageSpec(_VHD),
        lambda place: not place.pool,
    ),
    Case(
        Operation.COPY_TEMPLATE,
        "VHDX, VMDK",
        ImageSpec(_VHDX),
        ImageSpec(_VHD),
        lambda place: not place.pool,
    ),
    Case(
        Operation.COPY_TEMPLATE,
        "ISO, to an SR of ISOs that takes uploads",
        ImageSpec(_ISO),
        ImageSpec(_ISO),
        lambda place: not place.pool,
    ),
    Case(Operation.LINK_TEMPLATE, "inside one SR", ImageSpec(_VHD), ImageSpec(_VHD), lambda place: place.pool),
    Case(Operation.COPY_VOLUME, "VHD, RAW", ImageSpec(_VHD), ImageSpec(_VHD)),
    Case(
        Operation.COPY_VOLUME,
        "QCOW2",
        ImageSpec(_QCOW2),
        ImageSpec(_VHD),
        lambda place: not place.pool,
    ),
    Case(
        Operation.COPY_VOLUME,
        "VHDX, VMDK",
        ImageSpec(_VHDX),
        ImageSpec(_VHD),
        lambda place: not place.pool,
    ),
    Case(Operation.SNAPSHOT, "also of running VMs", ImageSpec(_VHD), ImageSpec(_VHD), lambda place: place.pool),
    Case(Operation.BACK_UP, "whole, or what changed", ImageSpec(_VHD), ImageSpec(_VHD), lambda place: place.pool),
    Case(Operation.EXPORT_VOLUME, "not attached", ImageSpec(_VHD), ImageSpec(_VHD), lambda place: place.pool),
    Case(
        Operation.RESTORE,
        "with all that it builds on",
        ImageSpec(_VHD),
        ImageSpec(_VHD),
        lambda place: not place.pool,
    ),
    Case(Operation.ATTACH_ISO, "in an SR", ImageSpec(_ISO), ImageSpec(_ISO), lambda place: place.pool),
    Case(
        Operation.ATTACH_ISO,
        "an SR that takes no uploads",
        ImageSpec(_ISO),
        ImageSpec(_ISO),
        lambda place: not place.pool,
    ),
)
_HYPERV = (
    Case(Operation.COPY_TEMPLATE, "VHDX", ImageSpec(_VHDX), ImageSpec(_VHDX)),
    Case(Operation.COPY_TEMPLATE, "QCOW2, VHD, RAW", ImageSpec(_VHD), ImageSpec(_VHDX), lambda place: not place.pool),
    Case(Operation.COPY_TEMPLATE, "VMDK", ImageSpec(ImageFormat.VMDK), ImageSpec(_VHDX), lambda place: not place.pool),
    Case(Operation.COPY_TEMPLATE, "ISO, also compressed", ImageSpec(_ISO), ImageSpec(_ISO)),
    Case(
        Operation.COPY_TEMPLATE,
        "a disk, compressed by gzip, bzip2, xz or zstd",
        ImageSpec(_VHDX, compression="gzip"),
        ImageSpec(_VHDX),
        lambda place: not place.pool,
    ),
    Case(Operation.LINK_TEMPLATE, "inside one pool", ImageSpec(_VHDX), ImageSpec(_VHDX), lambda place: place.pool),
    Case(Operation.COPY_VOLUME, "VHDX; of machines that are off", ImageSpec(_VHDX), ImageSpec(_VHDX)),
    Case(Operation.COPY_VOLUME, "VMDK", ImageSpec(ImageFormat.VMDK), ImageSpec(_VHDX), lambda place: not place.pool),
    Case(Operation.SNAPSHOT, "also of running VMs", ImageSpec(_VHDX), ImageSpec(_VHDX), lambda place: place.pool),
    Case(Operation.BACK_UP, "whole", ImageSpec(_VHDX), ImageSpec(_VHDX), lambda place: place.pool),
    Case(Operation.EXPORT_VOLUME, "no VM running", ImageSpec(_VHDX), ImageSpec(_VHDX), lambda place: place.pool),
    Case(
        Operation.RESTORE,
        "with all that it builds on",
        ImageSpec(_VHDX),
        ImageSpec(_VHDX),
        lambda place: not place.pool,
    ),
    Case(Operation.ATTACH_ISO, "in a pool", ImageSpec(_ISO), ImageSpec(_ISO), lambda place: place.pool),
)
_CASES: Mapping[HypervisorType, Sequence[Case]] = {
    HypervisorType.KVM: _KVM,
    HypervisorType.XEN: _XEN,
    HypervisorType.HYPERV: _HYPERV,
}


def acceptances() -> str:
    """Operation, hypervisor and store: how the handler gets at the source. Stores that fare alike share a column."""
    engine = TransferEngine()
    tables = []
    for handler in _handlers(engine):
        places, cases = _places(engine, handler), _CASES[handler.type]
        columns: dict[tuple[str, ...], list[str]] = {}
        for place in places:
            columns.setdefault(tuple(_cell(handler, case, place) for case in cases), []).append(place.name)
        head = (f"{handler.type}", "case", *(", ".join(names) for names in columns.values()))
        rows = [(case.operation.value, case.what, *(cells[row] for cells in columns)) for row, case in enumerate(cases)]
        tables.append(_table(head, rows))
    return "\n\n".join(tables)


def _cell(handler: HypervisorHandler, case: Case, place: Place) -> str:
    if not case.places(place):
        return "—"
    sequential = Kind.RANGE_READER not in place.store.offers(place.info)
    source = ImageSpec(case.source.format, compression=case.source.compression, sequential=sequential)
    inside_one_pool = case.operation is Operation.LINK_TEMPLATE and on_devices(place.store)
    try:
        accepted = handler.accepts(case.operation, source, replace(case.target, device=inside_one_pool)).kinds
    except OperationUnsupported:
        return "refused"
    found = negotiate(place.store.id, place.store.offers(place.info), accepted, ranges=place.info.ranges)
    if found.via is Via.BRIDGE:
        return "bridge"
    if found.chosen is not None:
        return f"direct: {found.chosen}"
    return "cached" if found.needs_cache and not on_devices(place.store) else "refused"


def formats() -> str:
    """Source format by target format: what becomes of the bytes."""
    blocks = []
    for handler in _handlers(TransferEngine()):
        targets = [target for target in ImageFormat if _fills(handler, target)]
        rows = (
            (
                source,
                *(_becomes(handler, ImageSpec(source), ImageSpec(target)) for target in targets),
            )
            for source in DRIVERS
        )
        blocks.append(_table((f"{handler.type}: from", *(f"to {target}" for target in targets)), rows))
    refused = ", ".join(found for found in ImageFormat if found not in DRIVERS)
    return "\n\n".join(blocks) + f"\n\nRefused by the gate as a source: {refused}."


def _becomes(handler: HypervisorHandler, source: ImageSpec, target: ImageSpec) -> str:
    try:
        handler.accepts(Operation.COPY_TEMPLATE, source, target)
    except OperationUnsupported:
        return "refused"
    return "in place" if handler.keeps_bytes(source, target) else "converted"


def _fills(handler: HypervisorHandler, target: ImageFormat) -> bool:
    try:
        handler.fills(Operation.COPY_TEMPLATE, ImageSpec(target))
    except OperationUnsupported:
        return False
    return True


def offers() -> str:
    """What every store offers, and in which ways it is written."""
    rows = []
    engine = TransferEngine()
    for place in _places(engine, *_handlers(engine)):
        cls = type(_innermost(place.store))
        rows.append(
            (
                place.name,
                _kinds(place.store.offers(place.info)),
                _kinds(place.store.writes),
                "yes" if cls.list is not DataStore.list else "no",
                "yes" if cls.usage is not DataStore.usage else "no",
            )
        )
    return _table(("store", "offers", "written as", "listed", "measured"), rows)


def _innermost(store: DataStore) -> DataStore:
    while (inner := getattr(store, "inner", None)) is not None:
        store = inner
    return store


def _kinds(kinds: frozenset[Kind]) -> str:
    return ", ".join(kind for kind in Kind if kind in kinds) or "not at all"


def supported() -> str:
    return "\n".join(f"- {what}" for what in SUPPORTED)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def xen_checks() -> str:
    """What the self-test tries."""
    head = "| check | what the agent takes for granted | if it is otherwise |\n| --- | --- | --- |\n"
    return head + "\n".join(f"| `{check.name}` | {check.claim} | {check.otherwise} |" for check in CHECKS)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "acceptances": acceptances,
    "formats": formats,
    "offers": offers,
    "supported-stores": supported,
    "xen-checks": xen_checks,
}


def generated(page: str) -> str:
    """The text of a page with every block made anew. KeyError for a block that nobody makes."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}\n{found[3]}", page)


def block_names(page: str) -> list[str]:
    return [found["name"] for found in _BLOCK.finditer(page)]


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if (new := generated(text)) != text:
            path.write_text(new)
            print(f"{path.name}: rewritten")


if __name__ == "__main__":
    main()
