"""LVM's own tool on a real volume group: names, reports, steps, and what it says when it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.lvm_calls import Lvm, explained
from stores.backends.lvm_names import OURS, doomed_name, group_name, is_image, pending_name, volume_name
from stores.backends.lvm_report import Group, Volume, read_volumes
from stores.contract import KiB, MiB
from stores.errors import AlreadyExists, InvalidReference, NoSpace, NotFound, StorageError, Unavailable
from stores.tools.process import ToolFailed, ToolRunner
from tests.lvm import LoopLvm, VolumeGroup

REFUSED = [
    *(
        "snapshot1",
        "pvmove0",
        "a_tmeta",
        "x_mlog_y",
        ".",
        "..",
        "a/b",
        "a b",
        "é",
        "a@b",
        "n" * 101,
        "-".join("n" * 51),
    ),
    *(f"{OURS}w_1", "-a"),
]

# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("ref", ["3f0a7c1e-93d2-4a55-b6f7-2c54c1a1f2aa", "vol+1_a.b", ".hidden", "n" * 100])
def test_a_volume_has_the_name_of_its_object(ref: str) -> None:
    assert volume_name(ref) == ref
    assert is_image(ref)


@pytest.mark.parametrize("ref", REFUSED)
def test_what_cannot_be_a_name_is_refused(ref: str) -> None:
    with pytest.raises(InvalidReference):
        volume_name(ref)


@given(st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_our_own_names_are_short_apart_and_no_image(ref: str, token: str) -> None:
    names = [pending_name(ref, token), doomed_name(ref), pending_name(ref, token + "x")]
    assert len(set(names)) == 3
    assert all(len(name) < 60 and name.isascii() and not is_image(name) for name in names)


def test_hidden_objects_are_apart_from_images() -> None:
    names = {volume_name(f".storage-agent/frozen/v/{number}") for number in range(3)}
    assert len(names) == 3
    assert not any(is_image(name) for name in names)


@pytest.mark.parametrize("path", ["/vg0", "vg0", "/dev/vg0", "vg0/"])
def test_a_group_in_every_spelling(path: str) -> None:
    assert group_name(path, "p") == "vg0"


@pytest.mark.parametrize("path", [None, "", "/", "/a/b", "-v", "a b", "--all"])
def test_no_group(path: str | None) -> None:
    with pytest.raises(InvalidReference, match="volume group"):
        group_name(path, "p")


# ----------------------------------------------------------------------------------------------------------- reports


def row(**given: str) -> bytes:
    fields = {
        "lv_name": "v",
        "lv_uuid": "u",
        "lv_size": "4194304",
        "lv_attr": "-wi-a-----",
        "lv_active": "active",
        "lv_device_open": "",
        "segtype": "linear",
        "pool_lv": "",
        "data_percent": "",
        "lv_tags": "",
    }
    return json.dumps({"report": [{"lv": [fields | given]}]}).encode()


def test_volumes_in_a_report() -> None:
    assert read_volumes(row()) == [Volume("v", "u", 4 * MiB, "linear", None, 4 * MiB, True, False, False)]
    (thin,) = read_volumes(row(segtype="thin", pool_lv="tp", data_percent="25.00", lv_active="", lv_device_open="open"))
    assert (thin.pool, thin.used, thin.active, thin.open) == ("tp", 1 * MiB, False, True)
    assert read_volumes(row(lv_attr="twi-aotz--", segtype="thin-pool"))[0].zeroes
    assert not read_volumes(row(lv_attr="twi-aot---", segtype="thin-pool"))[0].zeroes
    assert read_volumes(row(lv_active="active exclusively"))[0].active
    assert not read_volumes(row(lv_active="unknown"))[0].active
    assert read_volumes(b'{"report": [{"lv": []}]}') == []


@given(st.integers(1, 1 << 50), st.sampled_from([64 * KiB, 4 * MiB, 3 * MiB]))
def test_sizes_are_whole_extents(size: int, extent: int) -> None:
    rounded = Group("g", 0, 0, extent, ()).rounded(size)
    assert rounded % extent == 0
    assert size <= rounded < size + extent


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Logical volume vg/v in use.", Unavailable),
        ("Logical volume vg/v contains a filesystem in use.", Unavailable),
        ("LV locked by other host: vg/v", Unavailable),
        ('Volume group "vg" has insufficient free space (1 extents): 2 required.', NoSpace),
        ('Volume group "vg" not found', NotFound),
        ("something else", ToolFailed),
    ],
)
def test_complaints_have_a_kind(said: str, kind: type[StorageError]) -> None:
    error = explained(ToolFailed("lvm ended", tool="lvm", exit_code=5, stderr=said), "vg")
    assert type(error) is kind
    assert error.details["stderr" if kind is ToolFailed else "said"] == said


# ------------------------------------------------------------------------------------------------------------- calls


@pytest.fixture
def lvm(volume_group: VolumeGroup) -> LoopLvm:
    return LoopLvm(ToolRunner(), volume_group)


async def test_the_life_of_a_volume(lvm: LoopLvm, volume_group: VolumeGroup) -> None:
    before = await lvm.look()
    await lvm.create("v", 3 * MiB + 1)
    made = await lvm.volume("v")
    assert made is not None
    assert (made.name, made.size, made.kind, made.pool) == ("v", 4 * MiB, "linear", None)
    await lvm.rename("v", "w")
    assert await lvm.volume("v") is None
    await lvm.resize("w", 9 * MiB)
    await lvm.resize("w", 9 * MiB - 1)
    (grown,) = await lvm.volumes()
    assert (grown.name, grown.uuid, grown.size) == ("w", made.uuid, 9 * MiB)
    assert before.free - (await lvm.look()).free == 9 * MiB
    await lvm.remove("w")
    assert await lvm.look() == before
    assert volume_group.volumes() == set()


async def test_refusals_say_what_is_wrong(lvm: LoopLvm) -> None:
    await lvm.create("v", 1 * MiB)
    await lvm.create("w", 1 * MiB)
    with pytest.raises(NoSpace, match="insufficient free space"):
        await lvm.create("x", 1 << 40)
    with pytest.raises(NoSpace):
        await lvm.resize("v", 1 << 40)
    with pytest.raises(AlreadyExists):
        await lvm.create("v", 1 * MiB)
    with pytest.raises(AlreadyExists):
        await lvm.rename("w", "v")
    with pytest.raises(NotFound):
        await lvm.remove("missing")
    assert {volume.name for volume in await lvm.volumes()} == {"v", "w"}


async def test_a_group_that_is_not_there(volume_group: VolumeGroup) -> None:
    absent = Lvm(ToolRunner(), "absent", options=volume_group.options)
    for call in (absent.look(), absent.volumes(), absent.volume("v"), absent.create("v", 1)):
        with pytest.raises(NotFound, match="absent"):
            await call


async def test_tags_change_in_one_step(lvm: LoopLvm) -> None:
    assert (await lvm.look()).tags == ()
    await lvm.retag(["a.1=x/y&z", "b"], [])
    await lvm.retag(["c"], ["b", "never-there"])
    await lvm.retag([], [])
    assert set((await lvm.look()).tags) == {"a.1=x/y&z", "c"}


async def test_wiping_begins_where_it_is_told(lvm: LoopLvm, volume_group: VolumeGroup) -> None:
    await lvm.create("v", 2 * MiB)
    await lvm.create("after", 1 * MiB)
    for name, size in (("v", 2 * MiB), ("after", 1 * MiB)):
        Path(volume_group.activate(name)).write_bytes(b"x" * size)
    await lvm.wipe(volume_group.activate("v"), offset=1 * MiB)
    volume_group.deactivate("v")
    volume_group.deactivate("after")
    assert volume_group.read("v") == b"x" * MiB + bytes(MiB)
    assert volume_group.read("after") == b"x" * MiB
