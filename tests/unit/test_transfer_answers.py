"""What HTTP answers mean: heads, statuses, ranges, versions, delays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.contract import ObjectInfo
from stores.errors import (
    AccessDenied,
    IntegrityError,
    NotFound,
    ObjectChanged,
    StoreError,
    StoreUnsupported,
    Unavailable,
)
from stores.transfer.answers import RETRY_AFTER_LIMIT_S, check_range, retry_after_s, status_error, strong_etag
from stores.transfer.target import HttpPatience, HttpTarget
from stores.transfer.wire import Answer, ConnectionFailed, parse_head

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INFO = ObjectInfo("object", 1000, version='"v1"')


def answer(status: int = 206, **headers: str) -> Answer:
    return Answer(status, "", {name.replace("_", "-"): value for name, value in headers.items()}, keep_alive=True)


def test_a_head_is_read() -> None:
    found = parse_head(b'HTTP/1.1 206 Partial Content\r\nContent-Length: 12\r\nETag:"x"\r\nConnection: foo, Close')
    assert (found.status, found.reason, found.length, found.keep_alive) == (206, "Partial Content", 12, False)
    assert found.headers["etag"] == '"x"'


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"SSH-2.0-OpenSSH",
        b"HTTP/2 200",
        b"HTTP/1.1 2xx No",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\n folded: x",
        b"HTTP/1.1 200 OK\r\nName : x",
    ],
)
def test_what_is_no_head_fails(head: bytes) -> None:
    with pytest.raises(ConnectionFailed):
        parse_head(head)


@given(st.binary(max_size=300))
def test_any_head_is_read_or_fails(head: bytes) -> None:
    try:
        found = parse_head(b"HTTP/1.1 206 OK\r\n" + head)
        assert found.status == 206
        assert found.length is None or found.length >= 0
        check_range(found, 0, 10, INFO, "it")
    except (ConnectionFailed, StoreError):
        pass


@pytest.mark.parametrize("text", ["-1", "+5", "1 2", "0x10", "", "\u0663"])
def test_a_content_length_is_digits(text: str) -> None:
    assert answer(content_length=text).length is None


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFound),
        (410, NotFound),
        (401, AccessDenied),
        (403, AccessDenied),
        (412, ObjectChanged),
        (416, IntegrityError),
        (408, Unavailable),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (302, Unavailable),
        (400, StoreError),
    ],
)
def test_statuses_are_typed(status: int, error: type[StoreError]) -> None:
    found = status_error(answer(status), "object on host")
    assert type(found) is error
    assert "object on host" in found.message


def test_a_range_is_accepted_whole_or_in_part() -> None:
    whole = answer(content_range="bytes 100-199/1000", content_length="100", etag='"v1"')
    assert check_range(whole, 100, 100, INFO, "it") == 100
    part = answer(content_range="bytes 100-149/*", content_length="50")
    assert check_range(part, 100, 100, INFO, "it") == 50
    assert check_range(answer(200, content_length="1000"), 0, 1000, INFO, "it") == 1000


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (answer(content_length="100"), IntegrityError),
        (answer(content_range="bytes 0-99/1000", content_length="100"), IntegrityError),
        (answer(content_range="bytes 100-200/1000", content_length="101"), IntegrityError),
        (answer(content_range="bytes 199-100/1000", content_length="100"), IntegrityError),
        (answer(content_range="bytes 100-199/1000", content_length="99"), IntegrityError),
        (answer(content_range="bytes 100-199/1000"), IntegrityError),
        (answer(content_range="bytes 100-199/1000", content_length="100", transfer_encoding="chunked"), IntegrityError),
        (answer(content_range="bytes 100-199/999", content_length="100"), ObjectChanged),
        (answer(content_range="bytes 100-199/1000", content_length="100", etag='"v2"'), ObjectChanged),
        (answer(200, content_length="1000"), StoreUnsupported),
        (answer(200, content_length="999"), ObjectChanged),
    ],
)
def test_a_contradictory_range_is_refused(found: Answer, error: type[StoreError]) -> None:
    with pytest.raises(error) as failure:
        check_range(found, 100, 100, INFO, "it")
    assert type(failure.value) is error


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ('"abc"', '"abc"'),
        ('W/"abc"', None),
        ("abc", None),
        (None, None),
        ('"a\r\nX: y"', None),
        ('"a"b"', None),
        ("12-34-56", None),
    ],
)
def test_only_strong_etags_are_conditions(version: str | None, expected: str | None) -> None:
    assert strong_etag(version) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        ("99999", RETRY_AFTER_LIMIT_S),
        (format_datetime(NOW + timedelta(seconds=20), usegmt=True), 20.0),
        (format_datetime(NOW - timedelta(seconds=20), usegmt=True), 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("", 0.0),
    ],
)
def test_a_server_may_ask_for_a_delay(text: str, expected: float) -> None:
    assert retry_after_s(answer(503, retry_after=text), NOW) == expected


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_a_limit(failures: int, random: float) -> None:
    patience = HttpPatience(backoff_s=0.2, backoff_limit_s=10)
    assert 0.1 <= patience.wait_s(failures, random) <= 15
    assert patience.wait_s(failures, random) <= patience.wait_s(failures + 1, random)


def test_a_request_names_its_host_and_hides_its_path() -> None:
    target = HttpTarget("example.org", 80, "192.0.2.1", None, "/a?signature=hush", {"X-Key": "hush"})
    assert target.request(Range="bytes=0-1", If_Match='"v"').splitlines() == [
        b"GET /a?signature=hush HTTP/1.1",
        b"Host: example.org",
        b"User-Agent: storage-agent",
        b"Accept-Encoding: identity",
        b"X-Key: hush",
        b"Range: bytes=0-1",
        b'If-Match: "v"',
        b"",
    ]
    assert "hush" not in repr(target)
    assert b"Host: [2001:db8::1]:8080\r\n" in HttpTarget("2001:db8::1", 8080, "2001:db8::1", None, "/").request()


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/a b", {}), ("/a\r\nX: y", {}), ("/", {"X": "y\r\nZ: z"}), ("/", {"X\n": "y"}), ("/", {"X": "\0"})],
)
def test_a_request_cannot_be_split(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="split"):
        HttpTarget("h", 80, "192.0.2.1", None, path, headers).request()
