"""What is said to an authentication service, and what it says: pure.

Version 1 is what Swift's tempauth and swauth, and Ceph's radosgw speak, as python-swiftclient does (`get_auth_1_0`): a GET
whose headers carry user and key, answered by headers with a token and the account's URL. Version 3 is Keystone's "Password
authentication with scoped authorization" of the Identity API: JSON, answered by a token in a header and a catalogue of
services.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stores.backends.swift_config import URL_RULES, SwiftConfig
from stores.errors import PolicyRefused, StoreError, Unavailable
from stores.secret import Secret
from stores.url_policy import ParsedUrl, check_url

SERVICE = "object-store"
INTERFACE = "public"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the authentication service. Its headers and body are secret."""

    method: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """What a login gave. Each is an object of its own: a new one is known from an old one by identity."""

    storage: ParsedUrl
    """Of the account, without a slash at its end."""
    token: Secret = field(repr=False)


def asked(config: SwiftConfig) -> Asked:
    """How to log in."""
    if not config.keystone:
        user = f"{config.account}:{config.user}" if config.account else config.user
        return Asked("GET", {"X-Auth-User": user, "X-Auth-Key": config.key.reveal()}, b"")
    domain = {"name": config.domain}
    user_ = {"name": config.user, "domain": domain, "password": config.key.reveal()}
    identity = {"methods": ["password"], "password": {"user": user_}}
    scope = {"project": {"name": config.account, "domain": domain}}
    body = json.dumps({"auth": {"identity": identity, "scope": scope}}).encode()
    return Asked("POST", {"Content-Type": "application/json"}, body)


def granted(config: SwiftConfig, headers: Mapping[str, str], body: bytes) -> Access:
    """What a successful answer gives; `headers` in any case of letters.

    `StoreError` where it lacks what it has to have, `PolicyRefused` where the token would travel unencrypted though the key
    did not.
    """
    if config.keystone:
        token, url = headers.get("X-Subject-Token"), _endpoint(config, body)
    else:
        token, url = headers.get("X-Auth-Token") or headers.get("X-Storage-Token"), headers.get("X-Storage-Url")
    if not token or not url:
        raise Unavailable(
            f"{config.auth_url.origin} lets us in and gives no {'URL' if token else 'token'}: is it an authentication service?",
            store=config.id,
        )
    storage = check_url(url, URL_RULES)
    if config.auth_url.scheme == "https" and storage.scheme == "http":
        raise PolicyRefused(
            f"{config.auth_url.origin} sends us to {storage.origin}, which is not encrypted: the token would be seen; have the"
            " service name an https URL",
            store=config.id,
        )
    return Access(ParsedUrl(storage.scheme, storage.host, storage.port, storage.target.rstrip("/")), Secret(token))


def _endpoint(config: SwiftConfig, body: bytes) -> str | None:
    """The account's URL in the catalogue."""
    try:
        catalogue: list[dict[str, Any]] = json.loads(body)["token"].get("catalog", [])
        endpoints = [
            (endpoint.get("region"), str(endpoint["url"]))
            for service in catalogue
            if service["type"] == SERVICE
            for endpoint in service["endpoints"]
            if endpoint["interface"] == INTERFACE
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unavailable(f"{config.auth_url.origin} answers what is no token of Keystone's", store=config.id) from None
    found = [url for region, url in endpoints if config.region in (None, region)]
    if not found:
        regions = ", ".join(sorted({str(region) for region, _ in endpoints})) or "none"
        raise StoreError(
            f"the catalogue of {config.auth_url.origin} has no public {SERVICE} for project {config.account} in region"
            f" {config.region or 'any'}; there are regions: {regions}",
            store=config.id,
        )
    return found[0]
