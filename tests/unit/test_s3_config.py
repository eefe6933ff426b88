"""From transfer objects to client configurations, and from S3 error codes to errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.s3_config import S3Config, s3_config
from stores.backends.s3_errors import from_code
from stores.backends.s3_notes import marker_key
from stores.backends.s3_parts import MAX_PART, MAX_PARTS, S3_CUT, SMALLEST_PART, Cut, file_part_length
from stores.backends.s3_sums import crc64, multipart_etag
from stores.contract import GiB, MiB
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NoSpace,
    NotFound,
    Retry,
    StorageError,
    StoreError,
    StoreUnsupported,
    TooLarge,
    Unavailable,
)
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO


def config(**fields: Any) -> S3Config:
    given: dict[str, Any] = {"bucketName": "bucket", "accessKey": "AK", "secretKey": Secret("hunter2")}
    return s3_config(S3TO(**{**given, **fields}), StoreSettings(connect_timeout=7, read_timeout=8, attempts=4))


@pytest.mark.parametrize(
    ("endpoint", "https", "expected"),
    [
        ("s3.example:9000", None, "https://s3.example:9000"),
        ("s3.example:9000", True, "https://s3.example:9000"),
        ("s3.example:9000", False, "http://s3.example:9000"),
        ("http://s3.example", None, "http://s3.example"),
        ("http://s3.example", True, "http://s3.example"),
        ("https://s3.example", False, "https://s3.example"),
        ("HTTPS://S3.Example:443/", None, "https://s3.example"),
        ("http://127.0.0.1:80/base/path/", None, "http://127.0.0.1/base/path"),
        ("[fd00::1]:8333", False, "http://[fd00::1]:8333"),
        ("10.0.0.1", False, "http://10.0.0.1"),
        (" s3.example ", None, "https://s3.example"),
    ],
)
def test_endpoint(endpoint: str, https: bool | None, expected: str) -> None:
    found = config(endPoint=endpoint, httpsFlag=https)
    assert found.endpoint == expected
    assert found.id == f"s3:{expected}/bucket"
    assert found.path_style


@pytest.mark.parametrize(
    "endpoint",
    [
        "user:pw@s3.example",
        "ftp://s3.example",
        "s3.example/?x",
        "s3 example",
        "http://0x7f.1",
        "s3.example:0",
        "s3\\x",
        "://",
    ],
)
def test_hostile_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(StoreError):
        config(endPoint=endpoint)


def test_without_endpoint_it_is_aws_by_region() -> None:
    assert (config().endpoint, config().id, config().region) == (None, "s3:aws/bucket", "us-east-1")
    assert not config().path_style
    assert config(region="eu-west-1").region == "eu-west-1"


def test_addressing_can_be_told() -> None:
    assert not config(endPoint="s3.example", pathStyle=False).path_style
    assert config(pathStyle=True).path_style


def test_identity_is_endpoint_and_bucket_without_secrets() -> None:
    one = config(endPoint="one.example")
    assert one.id != config(endPoint="two.example").id
    assert one.id != config(endPoint="one.example", bucketName="other").id
    assert one.id == config(endPoint="https://one.example:443/", accessKey="another").id
    assert "hunter2" not in repr(one)
    assert "AK" not in one.id


@pytest.mark.parametrize(
    "signer", ["S3SignerType", "QueryStringSignerType", "AWS3SignerType", "NoOpSignerType", "s3v2"]
)
def test_signers_other_than_sigv4_are_refused(signer: str) -> None:
    with pytest.raises(StoreUnsupported, match="Signature Version 4"):
        config(signer=signer)


@pytest.mark.parametrize("signer", [None, "", "AWSS3V4SignerType", "AWS4SignerType"])
def test_sigv4_signers_pass(signer: str | None) -> None:
    assert config(signer=signer).bucket == "bucket"


def test_times_are_milliseconds_and_zero_is_not_for_ever() -> None:
    told = config(connectionTimeout=1500, socketTimeout=2500, maxErrorRetry=2)
    assert (told.connect_timeout, told.read_timeout, told.attempts) == (1.5, 2.5, 3)
    untold = config(connectionTimeout=0, socketTimeout=-1)
    assert (untold.connect_timeout, untold.read_timeout, untold.attempts) == (7, 8, 4)
    assert config(maxErrorRetry=0).attempts == 1
    assert config(maxErrorRetry=-3).attempts == 1


def test_anonymous_or_both_keys() -> None:
    anonymous = config(accessKey=None, secretKey=None)
    assert (anonymous.access_key, anonymous.secret_key) == (None, None)
    for half in ({"accessKey": None}, {"secretKey": None}, {"accessKey": ""}, {"secretKey": Secret("")}):
        with pytest.raises(AccessDenied):
            config(**half)


@pytest.mark.parametrize(
    "bucket", ["", "a", "a/b", "../x", "a..b", "-a", "a b", "arn:aws:s3:::b", "b\n", "ü-bucket", "x" * 256]
)
def test_hostile_bucket_is_refused(bucket: str) -> None:
    with pytest.raises(InvalidReference):
        config(bucketName=bucket)


@pytest.mark.parametrize(
    ("code", "status", "kind", "retry"),
    [
        ("NoSuchKey", 404, NotFound, Retry.NO),
        ("NoSuchBucket", 404, NotFound, Retry.NO),
        ("404", 404, NotFound, Retry.NO),
        ("AccessDenied", 403, AccessDenied, Retry.OPERATOR),
        ("InvalidAccessKeyId", 403, AccessDenied, Retry.OPERATOR),
        ("SignatureDoesNotMatch", 403, AccessDenied, Retry.OPERATOR),
        ("RequestTimeTooSkewed", 403, AccessDenied, Retry.OPERATOR),
        ("SomethingNew", 403, AccessDenied, Retry.OPERATOR),
        ("PermanentRedirect", 301, AccessDenied, Retry.OPERATOR),
        ("PreconditionFailed", 412, AlreadyExists, Retry.NO),
        ("BadDigest", 400, IntegrityError, Retry.YES),
        ("EntityTooLarge", 400, TooLarge, Retry.NO),
        ("QuotaExceeded", 403, NoSpace, Retry.OPERATOR),
        ("SlowDown", 503, Unavailable, Retry.YES),
        ("InternalError", 500, Unavailable, Retry.YES),
        ("SomethingNew", 599, Unavailable, Retry.YES),
        ("NotImplemented", 501, StoreUnsupported, Retry.NO),
        ("SomethingNew", 400, StoreError, Retry.NO),
        ("", 418, StoreError, Retry.NO),
    ],
)
def test_error_codes(code: str, status: int, kind: type[StorageError], retry: Retry) -> None:
    error = from_code(code, status, store="s3:x/b", operation="head_object", ref="key")
    assert type(error) is kind
    assert error.retry is retry
    assert "s3:x/b" in error.message
    assert error.details["status"] == status


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("InvalidAccessKeyId", "accessKey"),
        ("SignatureDoesNotMatch", "secretKey"),
        ("RequestTimeTooSkewed", "time synchronisation"),
        ("AuthorizationHeaderMalformed", "region"),
        ("AccessDenied", "policy"),
    ],
)
def test_refusals_say_what_to_check(code: str, hint: str) -> None:
    assert hint in from_code(code, 403, store="s3:x/b", operation="get", ref=None).message


@pytest.mark.parametrize(
    "size", [0, 1, SMALLEST_PART, 80_000 * MiB, 80_000 * MiB + 1, 5 * 1024 * GiB, MAX_PARTS * MAX_PART]
)
def test_parts_of_a_known_size_suffice_and_are_legal(size: int) -> None:
    length = S3_CUT.length(1, size)
    assert length == S3_CUT.length(MAX_PARTS, size)
    assert SMALLEST_PART <= length <= MAX_PART
    assert length * MAX_PARTS >= size
    assert length % MiB == 0


@pytest.mark.parametrize(
    "size", [0, 1, 8 * MiB, GiB, 4 * GiB, 625 * GiB, 80_000 * MiB, 5 * 1024 * GiB, MAX_PARTS * MAX_PART]
)
def test_parts_of_a_file_suffice_are_legal_and_not_small(size: int) -> None:
    length = file_part_length(size)
    assert SMALLEST_PART <= length <= MAX_PART
    assert length * MAX_PARTS >= size
    assert -(-size // length) <= 32 or length >= 64 * MiB


def test_parts_of_an_unknown_size_are_small_first_and_reach_what_s3_holds() -> None:
    lengths = [S3_CUT.length(number, None) for number in range(1, MAX_PARTS + 1)]
    assert lengths == sorted(lengths)
    assert lengths[4499] == SMALLEST_PART
    assert lengths[4500] == 2 * SMALLEST_PART
    assert max(lengths) <= MAX_PART
    assert sum(lengths) > 5 * 1024 * GiB
    assert all(length % SMALLEST_PART == 0 for length in lengths)
    sent = 0
    for length in lengths:
        assert length <= max(SMALLEST_PART, sent // 450)
        sent += length
    with pytest.raises(TooLarge, match="tell its size"):
        S3_CUT.length(MAX_PARTS + 1, None)


@given(st.integers(1, 10**13), st.integers(1, 10_000), st.integers(1, 10**8))
def test_parts_of_any_cut_suffice(size: int, most: int, half: int) -> None:
    smallest = 2 * half
    cut = Cut(smallest, most)
    try:
        length = cut.length(1, size)
    except TooLarge:
        assert size > most * (MAX_PART - smallest)
        return
    assert length * most >= size
    assert length % smallest == length % cut.piece == 0
    assert length == smallest or (length - smallest) * most < size


def test_what_s3_cannot_hold_is_refused_first() -> None:
    with pytest.raises(TooLarge):
        S3_CUT.length(1, MAX_PARTS * MAX_PART + 1)


def test_multipart_etag_is_the_md5_of_the_md5s() -> None:
    # md5(b"") twice, joined and hashed: computed with md5sum.
    empty = "d41d8cd98f00b204e9800998ecf8427e"
    assert multipart_etag([empty, empty]) == "5873dd45edd01f09c1ef2e7819369e8e-2"
    assert multipart_etag([empty, "not-an-md5"]) is None


def test_crc64_is_written_as_s3_writes_it() -> None:
    assert crc64(0xAE8B14860A799888) == "rosUhgp5mIg="  # CRC-64/NVME of "123456789" (NVM Express, 64-bit CRC)


def test_notes_of_different_writers_differ() -> None:
    keys = {marker_key(ref, token) for ref in ("a", "b", "a/b") for token in ("1", "2", "a")}
    assert len(keys) == 9
    assert all(key.startswith(".storage-agent/uploads/") for key in keys)
