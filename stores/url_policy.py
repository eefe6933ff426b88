"""Which URLs may be fetched, and which addresses may be connected to. Pure: nothing here resolves or connects.

A URL from a command is written by whoever may register a template, so it is hostile input. It is checked twice: its text
(`check_url`, before anything is resolved, and again for each redirect through `follow`), and each address that its host
resolves to (`check_address`). Whoever connects then uses exactly the address that was checked; a second resolution could
give another one.

Hosts are accepted in one spelling only. Parsers disagree about `0177.0.0.1`, `2130706433`, `127.1`, `[::ffff:7f00:1]`,
`host\\@other` or `host#@other`, and a check that reads a URL differently from the client that fetches it checks nothing.

The object store of an `S3TO` is different: its endpoint is configured by the operator of the management server and is
usually in a private network. Its text passes the same rules (`check_url`, with http allowed), its addresses do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NoReturn, TypeAlias
from urllib.parse import urljoin

from stores.errors import InvalidReference, PolicyRefused
from stores.settings import UrlSettings

Address: TypeAlias = IPv4Address | IPv6Address

_DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?P<fragment>#.*)?", re.DOTALL
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# WHATWG URL, "ends in a number": such a host is an IPv4 address to some parser, whatever it looks like.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_VISIBLE_ASCII = re.compile(r"[!-\[\]-~]*")  # no control characters, no space, no backslash, nothing beyond ASCII

# IPv6: only what IANA has given out as global unicast (RFC 4291, 2.4), minus the parts of it that carry another address or
# belong to nobody: IETF assignments with Teredo (RFC 2928, 4380), 6to4 (RFC 3056), documentation (RFC 3849, 9637). NAT64
# (RFC 6052, 8215), IPv4-mapped and IPv4-compatible addresses are outside of 2000::/3.
_GLOBAL_UNICAST6 = IPv6Network("2000::/3")
_REFUSED6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
# IPv4: what the IANA special-purpose registry (RFC 6890) does not call globally reachable, multicast and reserved. Spelled
# out, since `ipaddress` follows the registry differently from one Python release to the next. Last the one metadata service
# with a public address, Azure's WireServer.
_REFUSED4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "168.63.129.16/32",
    )
)


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """A URL that passed the text rules. `host` is lower case; an IPv6 address is without brackets.

    `target` is the request target (path and query), which may hold a token: it is not in `repr`.
    """

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)

    @property
    def authority(self) -> str:
        """Host and port as in a Host header: brackets where needed, the scheme's own port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """`scheme://authority`: safe to show."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole URL in canonical form. May hold a token in its query."""
        return self.origin + self.target

    @property
    def has_query(self) -> bool:
        return "?" in self.target


def check_url(url: str, policy: UrlSettings) -> ParsedUrl:
    """The parts of `url`, if every parser reads it alike and the policy allows its scheme and port.

    `InvalidReference` when it is malformed or ambiguous, `PolicyRefused` when the policy forbids it. Neither repeats the
    URL, which may hold a password or token.
    """
    if not _VISIBLE_ASCII.fullmatch(url):
        _invalid("it has control characters, spaces, backslashes or characters beyond ASCII: percent-encode them")
    match = _URL.fullmatch(url)
    if match is None:
        _invalid("it must begin with https://")
    if match["fragment"] is not None:
        _invalid("it has a fragment (#)")
    scheme = match["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise PolicyRefused(f"URL scheme {scheme!r} is refused: only https, and http where enabled", scheme=scheme)
    if scheme == "http" and not policy.allow_http:
        raise PolicyRefused("plain http is refused: use https, or enable http in the URL policy", scheme=scheme)
    if "@" in match["authority"]:
        _invalid("it carries user information (user:password@)")
    authority = _AUTHORITY.fullmatch(match["authority"])
    if authority is None:
        _invalid("its host is malformed")
    port = _DEFAULT_PORTS[scheme] if authority["port"] is None else _check_port(authority["port"])
    if policy.ports and port not in policy.ports:
        raise PolicyRefused(f"URL port {port} is refused: allowed are {sorted(policy.ports)}", port=port)
    target = match["target"]
    return ParsedUrl(
        scheme, _check_host(authority["host"].lower()), port, target if target[:1] == "/" else f"/{target}"
    )


def follow(current: ParsedUrl, location: str, policy: UrlSettings) -> ParsedUrl:
    """Where a redirect from `current` leads, checked like the first URL; from https never back to http."""
    if not _VISIBLE_ASCII.fullmatch(location):
        _invalid(
            "the server redirects to a URL with control characters, spaces, backslashes or characters beyond ASCII"
        )
    try:
        joined = urljoin(current.url, location.partition("#")[0])
    except ValueError:
        _invalid("the server redirects to what is no URL")
    following = check_url(joined, policy)
    if current.scheme == "https" and following.scheme == "http":
        raise PolicyRefused(f"{current.origin} redirects from https to http, which is refused", origin=current.origin)
    return following


def check_address(address: str, policy: UrlSettings) -> Address:
    """`address` (text, as a resolver gives it) as an address that may be connected to; `PolicyRefused` otherwise.

    Refused unless in `policy.allow_networks`: loopback, link-local (with the metadata service), private and shared
    ranges, multicast, reserved, unspecified, documentation, and IPv6 forms that embed an IPv4 address. An IPv4-mapped or
    scoped address is refused always: it would be compared as IPv6 and connected to as something else.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        raise InvalidReference(f"{address!r} is not an IP address") from None
    if isinstance(parsed, IPv6Address) and (parsed.ipv4_mapped is not None or parsed.scope_id is not None):
        raise PolicyRefused(f"address {parsed} is refused: IPv4-mapped or scoped", address=str(parsed))
    if any(parsed in network for network in policy.allow_networks) or _is_public(parsed):
        return parsed
    raise PolicyRefused(
        f"address {parsed} is refused: it is not public, and no network allowed by the URL policy has it",
        address=str(parsed),
    )


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_UNICAST6 and not any(address in network for network in _REFUSED6)
    return not any(address in network for network in _REFUSED4)


def _check_host(host: str) -> str:
    if host.startswith("["):
        literal = host[1:-1]
        try:
            address = IPv6Address(literal)
        except ValueError:
            _invalid("its IPv6 address is malformed")
        if address.scope_id is not None or address.ipv4_mapped is not None or str(address) != literal:
            _invalid("its IPv6 address is not in canonical form, or is scoped or IPv4-mapped")
        return literal
    labels = host.split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))  # exactly four decimal parts without leading zeros
        except ValueError:
            _invalid("its host is a number but not an IPv4 address in canonical form")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        _invalid("its host is not a DNS name (internationalised names: in their xn-- form)")
    return host


def _check_port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        _invalid("its port is not a number from 1 to 65535")
    return int(text)


def _invalid(reason: str) -> NoReturn:
    raise InvalidReference(f"the URL is refused: {reason}", reason=reason)
