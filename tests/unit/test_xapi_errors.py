"""What XAPI's codes become, and which addresses are a pool's hosts."""

from __future__ import annotations

import pytest

from hypervisors.xen.errors import failure
from hypervisors.xen.events import plain
from hypervisors.xen.hosts import Host, known, parse_host
from stores.errors import InvalidReference, Retry


@pytest.mark.parametrize(
    ("code", "kind", "retry"),
    [
        ("OTHER_OPERATION_IN_PROGRESS", "XapiBusy", Retry.YES),
        ("VDI_IN_USE", "XapiBusy", Retry.YES),
        ("SR_BACKEND_FAILURE_44", "XapiRefused", Retry.OPERATOR),
        ("SR_NO_PBDS", "XapiRefused", Retry.OPERATOR),
        ("HANDLE_INVALID", "XapiFailure", Retry.NO),
        ("A_CODE_OF_TOMORROW", "XapiFailure", Retry.NO),
        ("SESSION_AUTHENTICATION_FAILED", "AccessDenied", Retry.OPERATOR),
    ],
)
def test_codes_say_whether_to_try_again(code: str, kind: str, retry: Retry) -> None:
    error = failure(code, ["a", "", "b"], doing="VDI.create")
    assert (error.kind, error.retry, error.details["code"]) == (kind, retry, code)


def test_messages_name_what_was_done_and_what_was_said() -> None:
    error = failure("VDI_IN_USE", ["OpaqueRef:1", "destroy"], doing="VDI.destroy")
    assert error.message == "VDI.destroy: XAPI answers VDI_IN_USE (OpaqueRef:1, destroy)"
    assert error.details["params"] == ["OpaqueRef:1", "destroy"]


def test_sessions_and_users_are_not_told() -> None:
    for error in (
        failure("SESSION_INVALID", ["OpaqueRef:secret"], doing="VDI.create"),
        failure("SESSION_AUTHENTICATION_FAILED", ["secret", "secret"], doing="login"),
    ):
        assert "secret" not in f"{error} {error.details}"


@pytest.mark.parametrize(
    ("url", "shown", "base"),
    [
        ("https://xen-1.example", "xen-1.example", "https://xen-1.example"),
        ("https://192.0.2.1:8443/", "192.0.2.1:8443", "https://192.0.2.1:8443"),
        ("https://[2001:db8::1]", "[2001:db8::1]", "https://[2001:db8::1]"),
        ("unix:/var/lib/xcp/xapi", "unix:/var/lib/xcp/xapi", "http://localhost"),
    ],
)
def test_hosts_are_urls(url: str, shown: str, base: str) -> None:
    host = parse_host(url)
    assert (str(host), host.url) == (shown, base)


@pytest.mark.parametrize(
    "url", ["http://xen", "xen", "https://", "https://u:p@xen", "https://xen/path", "https://xen:port", "unix:relative"]
)
def test_other_hosts_are_refused(url: str) -> None:
    with pytest.raises(InvalidReference):
        parse_host(url)


def test_fingerprints() -> None:
    assert parse_host("https://xen", "AB:" * 31 + "CD").fingerprint == b"\xab" * 31 + b"\xcd"
    for wrong in ("", "ab", "zz" * 32):
        with pytest.raises(InvalidReference, match="64 hexadecimal digits"):
            parse_host("https://xen", wrong)


def test_addresses_are_found_among_the_known_hosts() -> None:
    hosts = [Host("192.0.2.1"), Host("192.0.2.2", 8443), Host("2001:db8::1")]
    assert known("192.0.2.1", hosts) is hosts[0]
    assert known("192.0.2.2:8443", hosts) is hosts[1]
    assert known("192.0.2.2", hosts) is None
    assert known("[2001:db8::1]", hosts) is hosts[2]
    assert known("2001:db8::1", hosts) is hosts[2]
    assert known("192.0.2.9", hosts) is None
    assert known("", hosts) is None


@pytest.mark.parametrize(
    "text", ["<value>OpaqueRef:1</value>", "<value><string>OpaqueRef:1</string></value>", "OpaqueRef:1"]
)
def test_results_of_tasks(text: str) -> None:
    assert plain(text) == "OpaqueRef:1"
    assert plain("") == ""
