"""What is decided about RBD pools without a cluster: where they are, as whom they are entered, how things are called there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transports.cloudstack.commands_naming import pool_of
from agent.transports.cloudstack.models_objects import StorageFilerTO
from hypervisors.contract import ImageSpec, OperationUnsupported, Source
from hypervisors.documents import About, document_ref
from hypervisors.kvm.guests import KvmGuests
from hypervisors.kvm.libvirt import Libvirt
from hypervisors.snapshot_records import frozen_ref
from stores.backends.rbd_calls import CallFailed
from stores.backends.rbd_cluster import explained
from stores.backends.rbd_image import UNFINISHED, name_of, unfinished_name
from stores.backends.rbd_notes import is_note, where
from stores.backends.rbd_place import RbdPlace, login_for, parse_keyring, place_of_pool
from stores.contract import Kind, NetworkImage, ObjectInfo
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidReference,
    NoSpace,
    NotFound,
    Unavailable,
)
from stores.secret import MASK, Secret
from stores.to import ImageFormat, PrimaryDataStoreTO
from stores.tools.process import ToolFailed
from stores.transfer.engine import TransferEngine

KEY = "AQDm2lZgAAAAABAAyD6E8kRBQ3Tn1pZQhYxFdw=="
KEYRING = f'[client.other]\n[client.vm]\n\tcaps mon = "profile rbd"\n\tkey = {KEY}\n'


def pool(**fields: object) -> PrimaryDataStoreTO:
    given: dict[str, object] = {"uuid": "p", "poolType": "RBD", "host": "mon1", "path": "rbd", **fields}
    return PrimaryDataStoreTO.model_validate(given)


@pytest.mark.parametrize(
    ("host", "port", "monitors"),
    [
        ("mon1", None, "mon1"),
        ("mon1", 6789, "mon1:6789"),
        ("mon1, 192.0.2.1", 6789, "mon1:6789,192.0.2.1:6789"),
        ("mon1:3300,mon2:3300", 6789, "mon1:3300,mon2:3300"),
        ("[2001:db8::1]:6789", None, "[2001:db8::1]:6789"),
    ],
)
def test_monitors(host: str, port: int | None, monitors: str) -> None:
    assert place_of_pool(pool(host=host, port=port)).monitors == monitors


@pytest.mark.parametrize(
    "fields",
    [
        {"host": None},
        {"host": "mon1\nkeyring = /etc/shadow"},
        {"host": "mon1 mon2"},
        {"path": None},
        {"path": "a/b"},
        {"path": "-c"},
        {"path": "x@y"},
        {"details": {"user": "vm]\n[client.x", "secret": KEY}},
        {"details": {"user": "vm", "secret": f"{KEY}\n[client.x]"}},
        {"details": {"user": "--id", "secret": KEY}},
    ],
)
def test_what_would_be_more_than_a_value_in_the_configuration(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidReference) as refused:
        place_of_pool(pool(**fields))
    assert KEY not in refused.value.message


def test_who_we_are(tmp_path: Path) -> None:
    """What the pool came with, and without that the operator's keyring, by uuid or by name."""
    keyring = tmp_path / "keyring"
    keyring.write_text(KEYRING)
    came = place_of_pool(pool(details={"user": "admin", "secret": KEY}))
    assert login_for(came, "p", {"p": keyring}).user == "admin"
    masked = place_of_pool(pool(details={"user": "vm", "secret": MASK}))
    for name in ("p", "rbd"):
        login = login_for(masked, "p", {name: keyring})
        assert (login.user, login.key) == ("vm", Secret(KEY))
        assert KEY not in repr(login)
    for keyrings in ({}, {"p": tmp_path / "none"}):
        with pytest.raises(AccessDenied):
            login_for(masked, "p", keyrings)


@pytest.mark.parametrize(("told", "user"), [(f"vm:{KEY}", "vm"), (None, None), ("vm", None), (f"vm:{MASK}", None)])
def test_who_we_are_to_cloudstack(told: str | None, user: str | None) -> None:
    filer = StorageFilerTO.model_validate({"uuid": "p", "type": "RBD", "host": "mon1", "path": "rbd", "userInfo": told})
    login = place_of_pool(pool_of(filer)).login
    assert (login.user if login else None, login.key if login else None) == (user, Secret(KEY) if user else None)


@pytest.mark.parametrize("text", ["", "[client.vm]\n", f"key = {KEY}\n", "[client.vm]\nkey =\n"])
def test_no_keyring(text: str) -> None:
    with pytest.raises(AccessDenied, match="no keyring"):
        parse_keyring(text, Path("/k"))


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_names_of_images(one: str, other: str) -> None:
    """No two alike, and nothing in them has a meaning to the tools."""
    assert (name_of(one) == name_of(other)) == (one == other)
    assert not set(name_of(one)) & set("/@+ ")
    assert unfinished_name(one, other).startswith(UNFINISHED)


def test_names_of_notes() -> None:
    """Notes about one image that are listed together are in one object; images are none."""
    found = {
        document_ref(About("v/1", ("record",))): ("storage-agent.images/v/1.json", "content"),
        document_ref(About("v/1", ("children", "a/b"))): ("storage-agent.children/v%2F1", "a%2Fb"),
        document_ref(About("v/1", ("children",))): ("storage-agent.children/v%2F1", ""),
        document_ref(About("v/1", ("sent", "one", "x"))): ("storage-agent.sent/v%2F1", "one/x"),
    }
    for ref, expected in found.items():
        assert is_note(ref)
        assert where(ref) == expected
    assert not is_note(frozen_ref("v", "one"))
    assert not is_note("v")


@pytest.mark.parametrize(
    ("number", "connecting", "kind"),
    [
        (2, False, NotFound),
        (2, True, Unavailable),  # no file with the key, perhaps
        (13, True, Unavailable),
        (17, False, AlreadyExists),
        (110, False, Unavailable),
        (108, False, Unavailable),
        (16, False, Unavailable),
        (28, False, NoSpace),
        (1, False, AccessDenied),
        (22, False, ToolFailed),
        (None, False, ToolFailed),
    ],
)
def test_what_ceph_says(number: int | None, connecting: bool, kind: type[Exception]) -> None:
    assert type(explained(CallFailed("said", number, connecting=connecting), "pool", "ref")) is kind


@pytest.mark.parametrize(
    ("monitors", "hosts"),
    [
        ("mon1", (("mon1", 6789),)),
        ("mon1:3300,mon2", (("mon1", 3300), ("mon2", 6789))),
        ("v2:192.0.2.1:3300", (("192.0.2.1", 3300),)),
        ("[2001:db8::1]:6789,[2001:db8::2],2001:db8::3", tuple((f"2001:db8::{n}", 6789) for n in (1, 2, 3))),
    ],
)
def test_monitors_one_by_one(monitors: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert RbdPlace(monitors, "rbd", None).hosts == hosts


async def test_guests_are_given_what_they_can_find(engine: TransferEngine) -> None:
    """What is not is said before a libvirt is asked for anything: there is none here."""
    image = NetworkImage({"driver": "rbd"}, ObjectInfo("v", None), Kind.RBD_IMAGE)
    guests = KvmGuests(Libvirt("test:///nowhere"), engine)
    with pytest.raises(OperationUnsupported, match="where a guest finds it"):
        await guests.resize(Source(image, ImageSpec(ImageFormat.RAW)), 2, 1)
    await guests.aclose()
