"""Which share is meant, and as whom, without a secret in anything that is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from stores.backends.smb_credentials import login_for, parse_credentials
from stores.backends.smb_place import SmbPlace, place_of_pool, place_of_url
from stores.errors import AccessDenied, InvalidReference, StorageError
from stores.resolver import Resolver
from stores.secret import Secret
from stores.settings import SmbSettings, StoreSettings
from stores.to import NfsTO, PrimaryDataStoreTO
from stores.transfer.engine import TransferEngine

PASSWORD = "hunter2&more"


def of_url(url: str) -> SmbPlace:
    return place_of_url(NfsTO(url=Secret(url)))


def smb_pool(**fields: object) -> PrimaryDataStoreTO:
    known: dict[str, object] = {"uuid": "p-1", "poolType": "SMB", "host": "hv1", "path": "/vms/disks"}
    return PrimaryDataStoreTO.model_validate(known | fields)


def test_url_as_cloudstack_writes_it() -> None:
    place = of_url("cifs://Files.Example.org/Secondary/a%20b/?user=agent&password=hunter2%26more&domain=CORP")
    assert (place.host, place.port, place.share, place.folder) == ("files.example.org", 445, "Secondary", ("a b",))
    assert place.name == "files.example.org/secondary/a b"
    assert place.unc == "\\\\files.example.org\\Secondary"
    assert place.login is not None
    assert place.login.account == "CORP\\agent"
    assert place.login.password == Secret(PASSWORD)
    assert "hunter2" not in repr(place) + str(place) + place.name


def test_other_port_and_address_are_part_of_the_name() -> None:
    assert of_url("smb://[fd00::1]:4450/s").name == "[fd00::1]:4450/s"
    assert of_url("cifs://h/s").login is None


@pytest.mark.parametrize(
    "url",
    [
        "cifs:///share?password=hunter2",
        "cifs://host?password=hunter2",
        "cifs://host/?password=hunter2",
        "cifs://user:hunter2@host/share",
        "cifs://host:port/share?password=hunter2",
        "cifs://host/share/../other?password=hunter2",
        "cifs://host/share/%2E%2E/other?password=hunter2",
        "cifs://host/share/a%5Cb?password=hunter2",
        "cifs://host/share%00?password=hunter2",
        "cifs://host/share#hunter2",
        "http://host/share?password=hunter2",
    ],
)
def test_wrong_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        of_url(url)
    assert "hunter2" not in caught.value.message + str(caught.value.details)


def test_pool_has_its_credentials_in_its_details() -> None:
    place = place_of_pool(smb_pool(port=4450, details={"user": "agent", "password": PASSWORD}))
    assert (place.host, place.port, place.share, place.folder) == ("hv1", 4450, "vms", ("disks",))
    assert place.login is not None
    assert (place.login.account, place.login.password) == ("agent", Secret(PASSWORD))


def test_pool_path_is_taken_literally() -> None:
    assert place_of_pool(smb_pool(path="\\vms\\100%25")).folder == ("100%25",)


@pytest.mark.parametrize(
    "fields",
    [
        {"host": None},
        {"path": None},
        {"path": "/"},
        {"path": "/vms?user=a&password=hunter2"},
        {"path": "/vms/../other"},
        {"url": "cifs://hv1/vms?password=hunter2"},
        {"host": "agent:hunter2@hv1"},
    ],
)
def test_wrong_pool_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidReference) as caught:
        place_of_pool(smb_pool(**fields))
    assert "hunter2" not in caught.value.message + str(caught.value.details)


def test_masked_credentials_of_a_journal_are_none(tmp_path: Path) -> None:
    place = place_of_pool(smb_pool(details={"user": "agent", "password": "***"}))
    assert place.login is None
    kept = tmp_path / "hv1"
    kept.write_text("username=agent\npassword= with spaces \ndomain=CORP\n")
    login = login_for(place, SmbSettings(credentials={"HV1/vms": kept}))
    assert (login.account, login.password) == ("CORP\\agent", Secret(" with spaces "))
    assert login_for(place, SmbSettings(credentials={"hv1": kept})) == login
    assert login_for(place, SmbSettings(credentials={"hv2": kept})).user is None


def test_credentials_that_cannot_be_used_are_told_by_their_file(tmp_path: Path) -> None:
    place = place_of_pool(smb_pool())
    with pytest.raises(AccessDenied, match="missing"):
        login_for(place, SmbSettings(credentials={"hv1": tmp_path / "missing"}))
    with pytest.raises(AccessDenied) as caught:
        parse_credentials("password=hunter2", Path("/etc/hv1"))
    assert "hunter2" not in caught.value.message


async def test_resolver_has_one_store_for_one_place_and_login(engine: TransferEngine) -> None:
    resolver = Resolver(StoreSettings(), engine)
    url = "cifs://host/share?user=u&password=hunter2"
    first = resolver.store(NfsTO(url=Secret(url)))
    assert first.id == "smb:host/share"
    assert resolver.store(NfsTO(url=Secret(url))) is first
    assert resolver.store(NfsTO(url=Secret(url + "3"))) is not first
    pool = resolver.store(smb_pool(details={"user": "u", "password": "hunter2"}))
    assert pool.id == "pool:p-1"
    assert resolver.store(smb_pool(details={"user": "u", "password": "hunter2"})) is pool
    assert resolver.store(smb_pool(details={"user": "u", "password": "other"})) is not pool
    with pytest.raises(StorageError):
        resolver.store(smb_pool(path="/"))
    await resolver.aclose()
