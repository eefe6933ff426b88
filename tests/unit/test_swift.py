"""What is decided about Swift without asking anybody: logins, places, how objects are cut, what answers mean."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends import swift_segments as segments
from stores.backends.swift import usage_of
from stores.backends.swift_auth import asked, granted
from stores.backends.swift_config import MANIFEST, MAX_SEGMENT, SWIFT_CUT, file_part_length, swift_config
from stores.backends.swift_errors import refusal
from stores.backends.swift_publish import large_etag
from stores.contract import MiB, Usage
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NoSpace,
    NotFound,
    PolicyRefused,
    StoreError,
    StoreUnsupported,
    TooLarge,
    Unavailable,
)
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import SwiftTO

KEY = "a-key-that-nobody-sees"
V1 = {"url": "https://swift.example/auth/v1.0", "account": "acc", "userName": "user", "key": Secret(KEY)}
V3 = {**V1, "url": "https://keystone.example/identity/v3/"}


def config(**fields: Any) -> Any:
    return swift_config(SwiftTO.model_validate({**V1, **fields}), StoreSettings())


def test_login_of_version_1_names_account_and_user() -> None:
    wanted = asked(config())
    assert (wanted.method, wanted.headers) == ("GET", {"X-Auth-User": "acc:user", "X-Auth-Key": KEY})
    assert asked(config(account=None)).headers["X-Auth-User"] == "user"
    assert config().auth_url.url == V1["url"]


def test_login_by_keystone_is_scoped_to_the_project() -> None:
    found = config(**V3, domain="Users")
    assert found.auth_url.url == "https://keystone.example/identity/v3/auth/tokens"
    auth = json.loads(asked(found).body)["auth"]
    domain = {"name": "Users"}
    assert auth["identity"]["password"]["user"] == {"name": "user", "domain": domain, "password": KEY}
    assert auth["scope"] == {"project": {"name": "acc", "domain": domain}}


def test_nothing_shows_the_key() -> None:
    for found in (config(), config(**V3)):
        assert KEY not in repr(found) + found.id + repr(asked(found))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"url": "https://keystone.example/v2.0"}, StoreUnsupported),
        ({"url": "ftp://swift.example/"}, PolicyRefused),
        ({"url": "https://swift.example/auth?x"}, InvalidReference),
        ({"url": "https://user:pw@swift.example/"}, InvalidReference),
        ({"key": None}, AccessDenied),
        ({"userName": None}, AccessDenied),
        ({**V3, "account": None}, AccessDenied),
        ({"container": "a/b"}, InvalidReference),
        ({"container": "x" * 257}, InvalidReference),
        ({"container": "a\nb"}, InvalidReference),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(fields: dict[str, Any], error: type[StoreError]) -> None:
    with pytest.raises(error):
        config(**fields)


def test_token_does_not_leave_the_encryption() -> None:
    headers = {"X-Auth-Token": "tk", "X-Storage-Url": "http://swift.example/v1/AUTH_a"}
    with pytest.raises(PolicyRefused):
        granted(config(), headers, b"")
    assert granted(config(url="http://swift.example/auth/v1.0"), headers, b"").storage.target == "/v1/AUTH_a"


@pytest.mark.parametrize(
    ("headers", "body"),
    [({}, b""), ({"X-Auth-Token": "tk"}, b""), ({"X-Storage-Url": "https://swift.example/v1/a"}, b"<html>")],
)
def test_answer_that_is_no_login_is_unavailable(headers: dict[str, str], body: bytes) -> None:
    for fields in ({}, V3):
        with pytest.raises(Unavailable):
            granted(config(**fields), headers, body)


@pytest.mark.parametrize("catalog", [[], [{"type": "object-store", "endpoints": []}], [{"type": "image"}]])
def test_catalogue_without_swift_says_so(catalog: list[Any]) -> None:
    with pytest.raises(StoreError):
        granted(config(**V3), {"X-Subject-Token": "tk"}, json.dumps({"token": {"catalog": catalog}}).encode())


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"", AccessDenied),
        (403, b"", AccessDenied),
        (404, b"", NotFound),
        (412, b"A precondition for this request was not met.", AlreadyExists),
        (412, b"Bad object name", InvalidReference),
        (422, b"", IntegrityError),
        (400, b"Errors:\n/c/s1, Etag Mismatch", IntegrityError),
        (400, b"Invalid X-Storage-Policy", StoreError),
        (413, b"Upload exceeds quota.", NoSpace),
        (413, b"", TooLarge),
        (507, b"", NoSpace),
        (498, b"", Unavailable),
        (409, b"", Unavailable),
        (503, b"", Unavailable),
    ],
)
def test_statuses(status: int, body: bytes, error: type[StoreError]) -> None:
    found = refusal(status, body, store="swift:s", operation="PUT", ref="object")
    assert type(found) is error
    assert found.details["status"] == status


@given(st.integers(0, MANIFEST * MAX_SEGMENT))
def test_parts_of_files_suffice(size: int) -> None:
    length = file_part_length(size)
    assert length % MiB == 0
    assert 8 * MiB <= length <= MAX_SEGMENT
    assert length * MANIFEST >= size


def test_too_large_is_told_before_anything_is_sent() -> None:
    with pytest.raises(TooLarge):
        file_part_length(MANIFEST * MAX_SEGMENT + 1)
    most = SWIFT_CUT.smallest * MANIFEST**2
    assert SWIFT_CUT.length(1, most) == SWIFT_CUT.smallest
    for number, size in ((1, most + 1), (MANIFEST**2 + 1, None)):
        with pytest.raises(TooLarge):
            SWIFT_CUT.length(number, size)


@given(st.text(min_size=1), st.text(), st.text())
def test_a_write_is_of_its_object_and_writer_only(ref: str, token: str, other: str) -> None:
    ref, token, other = (text.encode("utf-8", "replace").decode() for text in (ref, token, other))
    write = f"{segments.writer(ref, token)}0123456789abcdef"
    assert segments.write_of(ref, write) == write
    assert (segments.write_of(other, write) == write) == (other == ref)
    assert write.startswith(segments.writer(ref, other)) == (other == token)


@pytest.mark.parametrize("told", ["", "../../x", "0" * 32 + "/../", "0" * 32, None])
def test_metadata_of_others_names_no_write(told: str | None) -> None:
    assert segments.write_of("object", told) is None


def test_etag_of_a_large_object() -> None:
    one, two = hashlib.md5(b"one").hexdigest(), hashlib.md5(b"two").hexdigest()
    assert large_etag([one, two]) == hashlib.md5(f"{one}{two}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("container", "account", "usage"),
    [
        ({}, {}, Usage(0, None)),
        ({"X-Container-Bytes-Used": "7"}, {}, Usage(7, None)),
        ({"X-Container-Bytes-Used": "7", "X-Container-Meta-Quota-Bytes": "9"}, {}, Usage(7, 9)),
        (
            {"X-Container-Bytes-Used": "7", "X-Container-Meta-Quota-Bytes": "99"},
            {"X-Account-Bytes-Used": "27", "X-Account-Meta-Quota-Bytes": "30"},
            Usage(7, 10),
        ),
        ({"X-Container-Bytes-Used": "7", "X-Container-Meta-Quota-Bytes": "3"}, {}, Usage(7, 7)),
    ],
)
def test_usage_and_what_quotas_leave(container: dict[str, str], account: dict[str, str], usage: Usage) -> None:
    assert usage_of(container, account) == usage
