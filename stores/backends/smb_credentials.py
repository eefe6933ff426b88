"""As whom a share is entered: what the store object brought, else what the operator keeps for that server."""

from __future__ import annotations

from pathlib import Path

from stores.backends.smb_place import SmbLogin, SmbPlace
from stores.errors import AccessDenied
from stores.secret import Secret
from stores.settings import SmbSettings

SIZE_LIMIT = 64 * 1024


def login_for(place: SmbPlace, settings: SmbSettings) -> SmbLogin:
    """Reads a file where the settings name one: blocking. Without any credentials the process's own Kerberos ticket counts."""
    if place.login is not None:
        return place.login
    named = {key.lower(): path for key, path in settings.credentials.items()}
    for key in (f"{place.host}/{place.share}".lower(), place.host.lower()):
        if key in named:
            return parse_credentials(_read(named[key], place), named[key])
    return SmbLogin()


def parse_credentials(text: str, path: Path) -> SmbLogin:
    """`username=`, `password=` and `domain=`, one a line, as mount.cifs(8) reads them. Nothing of it is quoted."""
    words: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        words[key.strip().lower()] = value.strip() if key.strip().lower() != "password" else value
    user = words.get("username") or words.get("user")
    if not user:
        raise AccessDenied(f"the file {path} has no line username=..; it needs username=, password= and domain=")
    password = words.get("password")
    return SmbLogin(user, Secret(password) if password else None, words.get("domain") or None)


def _read(path: Path, place: SmbPlace) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(SIZE_LIMIT)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise AccessDenied(f"the credentials for {place.name} in {path} cannot be read: {reason}") from None
