"""Which share a `DataStoreTO` means, and as whom: from CloudStack's `cifs://` URLs and from pools of type SMB. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from stores.backends.smb_names import check_name
from stores.errors import InvalidReference
from stores.locations import split_url
from stores.secret import MASK, Secret
from stores.to import NfsTO, PrimaryDataStoreTO

PORT = 445
SCHEMES = ("cifs", "smb")


@dataclass(frozen=True, slots=True)
class SmbLogin:
    """Who the agent is towards a server. Without a password: by a Kerberos ticket that the process has."""

    user: str | None = None
    password: Secret | None = None
    domain: str | None = None

    @property
    def account(self) -> str | None:
        """`DOMAIN\\user`, or the user as given (`user@REALM` is one too)."""
        return f"{self.domain}\\{self.user}" if self.domain and self.user else self.user


@dataclass(frozen=True, slots=True)
class SmbPlace:
    """A folder of a share of a server. `login` is None where the store object brings none."""

    host: str
    share: str
    folder: tuple[str, ...] = ()
    port: int = PORT
    login: SmbLogin | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """`host/share/folder` in one spelling, without secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        server = host if self.port == PORT else f"{host}:{self.port}"
        return "/".join((server, self.share.lower(), *self.folder))

    @property
    def unc(self) -> str:
        """What TREE_CONNECT names."""
        return f"\\\\{self.host}\\{self.share}"


def place_of_url(to: NfsTO) -> SmbPlace:
    """Of `cifs://host[:port]/share[/folder]?user=..&password=..&domain=..`. Nothing of the URL is ever quoted."""
    return _place(to.url)


def place_of_pool(to: PrimaryDataStoreTO) -> SmbPlace:
    """Of a pool of type SMB: `host`, `port` and `path` (`/share/folder`), and in `details` `user`, `password` and `domain`.

    A password in `path` or `url` is refused: only `details` are kept out of journal and logs.
    """
    if not to.host or not to.path:
        raise InvalidReference(f"pool {to.uuid} of type SMB comes without a host or a path", pool=to.uuid)
    if "?" in to.path or "@" in to.host or "?" in (to.url or ""):
        raise InvalidReference(
            f"pool {to.uuid} of type SMB has credentials in its path or URL; give them in its details", pool=to.uuid
        )
    host = f"[{to.host}]" if ":" in to.host else to.host
    path = to.path.replace("\\", "/").lstrip("/")
    place = _place(Secret(f"cifs://{host}/{path}"), unescape=False)
    login = _login({key: secret.reveal() for key, secret in (to.details or {}).items()})
    return SmbPlace(place.host, place.share, place.folder, to.port or PORT, login)


def _place(url: Secret, *, unescape: bool = True) -> SmbPlace:
    parts = split_url(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    path = unquote(parts.path) if unescape else parts.path
    share, *folder = [part for part in path.split("/") if part] or [""]
    if parts.scheme not in SCHEMES or not host or "@" in parts.netloc or not share or parts.fragment or port == 0:
        raise InvalidReference("an SMB URL has the form cifs://host/share?user=..&password=..&domain=..")
    names = check_name("/".join((share, *folder)))
    login = _login(dict(parse_qsl(parts.query, keep_blank_values=True)))
    return SmbPlace(host, names[0], names[1:], port or PORT, login)


def _login(words: Mapping[str, str]) -> SmbLogin | None:
    """None where there is no user, and where a journal has masked what there was."""
    user, password = words.get("user") or None, words.get("password") or None
    if user is None or MASK in (user, password):
        return None
    return SmbLogin(user, Secret(password) if password else None, words.get("domain") or None)
