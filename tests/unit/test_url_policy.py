"""The URL policy against the classical ways around one, and against whatever hypothesis thinks of."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.errors import InvalidReference, PolicyRefused, StoreError
from stores.settings import UrlSettings
from stores.url_policy import ParsedUrl, check_address, check_url, follow

DEFAULT = UrlSettings()
OPEN = UrlSettings(allow_http=True, ports=())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/a/b.qcow2", ParsedUrl("https", "example.org", 443, "/a/b.qcow2")),
        ("HTTPS://Example.ORG", ParsedUrl("https", "example.org", 443, "/")),
        ("https://example.org?x=1", ParsedUrl("https", "example.org", 443, "/?x=1")),
        ("https://example.org/a%20b?t=%2F&u=a:b@c", ParsedUrl("https", "example.org", 443, "/a%20b?t=%2F&u=a:b@c")),
        ("http://198.51.100.7:8080/x", ParsedUrl("http", "198.51.100.7", 8080, "/x")),
        ("https://[2a00:1450::1]:8443/x", ParsedUrl("https", "2a00:1450::1", 8443, "/x")),
        ("https://xn--bcher-kva.example/", ParsedUrl("https", "xn--bcher-kva.example", 443, "/")),
        ("https://under_score.example/", ParsedUrl("https", "under_score.example", 443, "/")),
        ("https://1.2.3.4.example/", ParsedUrl("https", "1.2.3.4.example", 443, "/")),
    ],
)
def test_plain_urls_pass(url: str, expected: ParsedUrl) -> None:
    assert check_url(url, OPEN) == expected


def test_canonical_form_leaves_out_the_default_port_only() -> None:
    assert check_url("HTTPS://Host:443/a", OPEN).url == "https://host/a"
    assert check_url("http://[2001:db8::1]:443/a?b", OPEN).url == "http://[2001:db8::1]:443/a?b"


@pytest.mark.parametrize(
    "url",
    [
        # Numbers that some parser takes for an address, above all for 127.0.0.1 and 169.254.169.254.
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0/",
        "http://0x/",
        "http://127.0.0.01/",
        "http://127.000.000.001/",
        "http://256.0.0.1/",
        "http://1.2.3.4.5/",
        "http://2852039166/latest/meta-data/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://169.254.43518/",
        "http://127.0.0.1./",
        "http://a.1/",
        # IPv6 forms that hide an IPv4 address, are scoped or not in canonical form.
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:ffff:7f00:1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[2001:DB8:0:0::1]/",
        "http://[fe80::1%eth0]/",
        "http://[fe80::1%25eth0]/",
        "http://[::1/",
        "http://::1/",
        "http://[::1]x/",
        "http://[v1.fe]/",
        "http://[]/",
        # Parsers that disagree about where the host is.
        "http://good.example@127.0.0.1/",
        "http://user:secret@good.example/",
        "http://good.example:80@127.0.0.1/",
        "http://127.0.0.1\\@good.example/",
        "http://good.example\\.evil.example/",
        "http://good.example#@127.0.0.1/",
        "http://good.example/#fragment",
        "http:good.example/",
        "http:/good.example/",
        "//good.example/",
        "good.example/x",
        "/etc/passwd",
        "http://",
        "http:///path",
        "",
        # Control characters, spaces, and what browsers drop or normalise.
        "http://good.example/\r\nHost: evil",
        "http://good.example/a b",
        "http://good.example/\t",
        "http://good\n.example/",
        " http://good.example/",
        "http://good.example/\0",
        "http://good.example/\x7f",
        "http://ex\u00e4mple.org/",
        "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",  # circled digits: 127.0.0.1 after NFKC
        "http://127\u30020\u30020\u30021/",  # ideographic full stops
        "http://good.example\uff0fevil.example/",
        "http://%31%32%37.0.0.1/",
        "http://good%2eexample/",
        # Hosts and ports that are not well formed.
        "http://good..example/",
        "http://.good.example/",
        "http://good.example./",
        "http://-good.example/",
        "http://good-.example/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 127 + "example/",
        "http://good.example:/",
        "http://good.example:0/",
        "http://good.example:080/",
        "http://good.example:+80/",
        "http://good.example:65536/",
        "http://good.example:80:80/",
        "http://good.example: 80/",
        "http://good.example:\uff18\uff10/",
    ],
)
def test_ambiguous_urls_are_malformed(url: str) -> None:
    with pytest.raises(InvalidReference):
        check_url(url, OPEN)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "gopher://127.0.0.1:6379/_",
        "nbd://h/x",
        "nfs://h/x",
        "jar:http://h/",
        "dict://h",
    ],
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises((PolicyRefused, InvalidReference)):
        check_url(url, OPEN)


def test_http_and_ports_are_the_policys() -> None:
    with pytest.raises(PolicyRefused):
        check_url("http://example.org/", DEFAULT)
    with pytest.raises(PolicyRefused):
        check_url("https://example.org:22/", DEFAULT)
    assert check_url("https://example.org:22/", UrlSettings(ports=(22,))).port == 22
    with pytest.raises(PolicyRefused):
        check_url("https://example.org/", UrlSettings(ports=(22,)))


def test_refusals_do_not_repeat_the_url() -> None:
    for url in (
        "https://user:hunter2@host/",
        "https://host/?sig=hunter2#x",
        "ftp://host/hunter2",
        "https://host:99999/hunter2",
    ):
        with pytest.raises(StoreError) as refused:
            check_url(url, OPEN)
        assert "hunter2" not in f"{refused.value!r} {refused.value.details}"
    assert "hunter2" not in repr(check_url("https://host/x?sig=hunter2", OPEN))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "168.63.129.16", "::", "::1", "::7f00:1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:7f00:1", "100::1", "3fff::1",
        "5f00::1", "4000::1", "fe80::1%eth0", "2a00:1450::1%eth0",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(PolicyRefused):
        check_address(address, DEFAULT)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "223.255.255.254", "2a00:1450:4001::1", "2606:4700::1111"])
def test_public_addresses_pass(address: str) -> None:
    assert check_address(address, DEFAULT) == ip_address(address)


@pytest.mark.parametrize("text", ["localhost", "", "127.1", "0177.0.0.1", "2130706433", "1.2.3.4/24", "[::1]"])
def test_what_is_no_address_is_malformed(text: str) -> None:
    with pytest.raises(InvalidReference):
        check_address(text, DEFAULT)


def test_allowed_networks_open_exactly_themselves() -> None:
    policy = UrlSettings(allow_networks=(ip_network("10.1.0.0/16"), ip_network("fd00::/64")))
    assert check_address("10.1.2.3", policy) == IPv4Address("10.1.2.3")
    assert check_address("fd00::5", policy) == IPv6Address("fd00::5")
    for address in ("10.2.0.1", "127.0.0.1", "fd00:0:0:1::1", "::ffff:10.1.2.3", "fd00::5%eth0", "64:ff9b::a01:203"):
        with pytest.raises(PolicyRefused):
            check_address(address, policy)


def test_redirects_are_resolved_and_checked() -> None:
    start = check_url("https://example.org/dir/image?token=1", OPEN)
    assert follow(start, "other?x#part", OPEN).url == "https://example.org/dir/other?x"
    assert follow(start, "/root", OPEN).url == "https://example.org/root"
    assert follow(start, "//mirror.example/y", OPEN).url == "https://mirror.example/y"
    assert follow(start, "https://mirror.example:8443/z", OPEN).url == "https://mirror.example:8443/z"
    assert follow(check_url("http://a.example/", OPEN), "https://a.example/", OPEN).scheme == "https"
    with pytest.raises(PolicyRefused):
        follow(start, "http://example.org/dir/image", OPEN)


@pytest.mark.parametrize(
    "location",
    [
        "https://user@host/",
        "file:///etc/passwd",
        "//127.1/",
        "/a\r\nX: y",
        "https://host\\@evil/",
        "\thttps://host/",
        "http://[",
    ],
)
def test_hostile_redirects_are_refused(location: str) -> None:
    with pytest.raises((InvalidReference, PolicyRefused)):
        follow(check_url("https://example.org/", OPEN), location, OPEN)


@given(st.one_of(st.text(), st.from_regex(r"\A[hH]ttps?://[\x00-\x7f]{0,30}\Z")))
def test_what_passes_is_read_alike_by_another_parser(url: str) -> None:
    try:
        parsed = check_url(url, OPEN)
    except StoreError:
        return
    for text in (url, parsed.url):
        other = urlsplit(text)
        assert other.scheme == parsed.scheme
        assert (other.hostname, other.username, other.password) == (parsed.host, None, None)
        assert (other.port or {"http": 80, "https": 443}[other.scheme]) == parsed.port
    assert check_url(parsed.url, OPEN) == parsed
    assert "\r" not in parsed.url
    assert " " not in parsed.url


@given(st.ip_addresses(v=4), st.booleans())
def test_hosts_that_are_addresses_survive_only_in_canonical_form(address: IPv4Address, as_number: bool) -> None:
    if as_number:
        for text in (str(int(address)), hex(int(address))):
            with pytest.raises(InvalidReference):
                check_url(f"http://{text}/", OPEN)
    else:
        assert check_url(f"http://{address}/", OPEN).host == str(address)


@given(st.ip_addresses())
def test_no_address_passes_that_is_not_global(address: IPv4Address | IPv6Address) -> None:
    try:
        check_address(str(address), DEFAULT)
    except PolicyRefused:
        return
    assert address.is_global
    assert not any((address.is_multicast, address.is_private, address.is_loopback, address.is_link_local))


@given(st.ip_addresses(v=4))
def test_no_embedded_address_passes(address: IPv4Address) -> None:
    number = int(address)
    prefixes = {"::": 0, "::ffff:0:0": 0, "64:ff9b::": 0, "2002::": 80, "::ffff:0:0:0": 0}
    for prefix, shift in prefixes.items():
        embedding = IPv6Address(int(IPv6Address(prefix)) | number << shift)
        with pytest.raises(PolicyRefused):
            check_address(str(embedding), DEFAULT)


@given(st.text())
def test_redirects_never_leave_the_rules(location: str) -> None:
    try:
        following = follow(check_url("https://example.org/a/b", OPEN), location, OPEN)
    except StoreError:
        return
    assert following.scheme == "https"
    assert check_url(following.url, OPEN) == following
