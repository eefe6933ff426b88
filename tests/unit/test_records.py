"""Records beside images: what they hold, whose children they show, and how damage is met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.documents import HIDDEN, StoreDocuments, document_ref
from hypervisors.narrowing import as_pending_stream
from hypervisors.records import Origin, Parent, Record, Records, about_record, same_origin
from stores.backends.memory import MemoryStore
from stores.contract import Kind, ObjectInfo
from stores.errors import AlreadyExists, IntegrityError
from stores.to import ImageFormat
from stores.transfer.digests import Checksum

MD5 = "0" * 32


def record(*, parent: str | None = None, origin: Origin | None = None, token: str = "c-1") -> Record:
    backing = Parent(ref=parent, format=ImageFormat.QCOW2) if parent else None
    return Record(
        format=ImageFormat.QCOW2, virtual_size=1 << 30, token=token, created=1.5, origin=origin, backing=backing
    )


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def records(store: MemoryStore) -> Records:
    return Records(StoreDocuments(store))


async def names(store: MemoryStore) -> list[str]:
    return [info.ref async for info in store.list(HIDDEN) if not info.is_dir]


async def put(store: MemoryStore, ref: str, data: bytes) -> None:
    async with store.write(ref, Kind.BYTE_STREAM, token="t", replace=True) as pending:
        await as_pending_stream(pending).write(memoryview(data))
        await pending.commit()


@pytest.mark.parametrize("ref", ["v1", "dir/v1", "ünïcödé", "100%25", "with space"])
async def test_what_is_saved_is_loaded(records: Records, store: MemoryStore, ref: str) -> None:
    saved = record(parent="a/b %", origin=Origin(store="s3:x", ref="k", version='"e"', digests={"md5": MD5}))
    await records.save(ref, saved, token="c-1")
    assert await records.load(ref) == saved
    assert await records.children("a/b %") == [ref]
    await records.remove(ref, saved.parent)
    await records.remove(ref, saved.parent)
    assert await records.load(ref) is None
    assert await names(store) == []


async def test_a_record_is_not_overwritten_unless_told(records: Records) -> None:
    await records.save("v1", record(token="first"), token="first")
    with pytest.raises(AlreadyExists):
        await records.save("v1", record(token="second"), token="second")
    found = await records.load("v1")
    assert found is not None
    assert found.token == "first"
    await records.save("v1", record(token="second"), token="second", replace=True)
    found = await records.load("v1")
    assert found is not None
    assert found.token == "second"


async def test_children_are_those_whose_records_say_so(records: Records, store: MemoryStore) -> None:
    await records.save("one", record(parent="t"), token="c")
    await records.save("two", record(parent="t"), token="c")
    await records.save("other", record(parent="t2"), token="c")
    await store.delete(document_ref(about_record("two")))  # a crash between the two halves of `remove`
    assert await records.children("t") == ["one"]
    assert await records.children("t2") == ["other"]
    assert await records.children("none") == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"layout": 1}', b'{"layout": 99, "format": "RAW"}', b"x" * (2 << 20)])
async def test_a_damaged_record_is_not_taken_for_none(records: Records, store: MemoryStore, damage: bytes) -> None:
    await put(store, document_ref(about_record("v1")), damage)
    with pytest.raises(IntegrityError, match="v1"):
        await records.load("v1")


async def test_the_chain_goes_up(records: Records) -> None:
    top = record(parent="b")
    await records.save("b", record(parent="c"), token="c")
    chain = await records.chain(top)
    assert [parent.ref for parent, _ in chain] == ["b", "c"]
    assert chain[1][1] is None  # an image of before our time: its format is what its child's record says


async def test_a_circle_of_parents_ends(records: Records) -> None:
    await records.save("a", record(parent="b"), token="c")
    await records.save("b", record(parent="a"), token="c")
    with pytest.raises(IntegrityError, match="circle"):
        await records.chain(record(parent="a"))


# --------------------------------------------------------------------------------------------------------- same origin

_TEXT = st.text("ab", max_size=2)
_INFO = st.builds(ObjectInfo, ref=_TEXT, size=st.none(), version=st.none() | _TEXT)
_ORIGIN = st.builds(
    Origin, store=_TEXT, ref=_TEXT, version=st.none() | _TEXT, digests=st.dictionaries(st.just("md5"), st.text("01"))
)


def test_same_version_of_the_same_object() -> None:
    made = record(origin=Origin(store="s", ref="r", version="1"))
    assert same_origin(made, "s", ObjectInfo("r", 1, version="1"), None)
    for store, info in (
        ("s2", ObjectInfo("r", 1, version="1")),
        ("s", ObjectInfo("r2", 1, version="1")),
        ("s", ObjectInfo("r", 1, version="2")),
        ("s", ObjectInfo("r", 1, version=None)),
    ):
        assert not same_origin(made, store, info, None)


@given(_ORIGIN, _TEXT, _INFO, st.none() | st.builds(Checksum, st.just("md5"), st.text("01")))
def test_a_checksum_that_is_known_decides(
    origin: Origin, store: str, info: ObjectInfo, checksum: Checksum | None
) -> None:
    same = same_origin(record(origin=origin), store, info, checksum)
    if checksum is not None and "md5" in origin.digests:
        assert same == (origin.digests["md5"] == checksum.hex)
    elif same:
        assert info.version is not None
        assert (origin.store, origin.ref, origin.version) == (store, info.ref, info.version)


def test_an_image_of_unknown_origin_is_never_the_same() -> None:
    assert not same_origin(record(), "s", ObjectInfo("r", 1, version="1"), Checksum("md5", MD5))
