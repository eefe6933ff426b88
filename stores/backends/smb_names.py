"""Names on an SMB share: which refs can be files there, and how they are spelled on the wire.

Windows gives meaning to names that are plain text elsewhere: a colon opens another stream of the same file, a trailing dot or
space is dropped, `CON` is a device whatever its ending. Such a name would be another file than the one that was meant, so it
is refused, also where the server is a Samba that could store it ([MS-FSCC] 2.1.5, and the Win32 page "Naming Files, Paths, and
Namespaces").
"""

from __future__ import annotations

import re

from stores.errors import InvalidReference
from stores.paths import check_ref

COMPONENT_LIMIT = 255
"""Longest component in UTF-16 code units ([MS-FSCC] 2.1.5.2)."""

_FORBIDDEN = '"*:<>?\\|'
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)


def check_name(ref: str) -> tuple[str, ...]:
    """The components of a ref that is one on every SMB server; `InvalidReference` for any other. Looks at the text alone."""
    components = check_ref(ref)
    for component in components:
        problem = _problem(component)
        if problem:
            raise InvalidReference(f"not a name on an SMB share: it {problem}", ref=ref[:200])
    return components


def is_name(ref: str) -> bool:
    """Whether `check_name` accepts it."""
    try:
        check_name(ref)
    except InvalidReference:
        return False
    return True


def wire_path(*components: str) -> str:
    """Relative to the share, as CREATE and rename want it; empty for the share itself."""
    return "\\".join(components)


def _problem(component: str) -> str | None:
    for char in component:
        if char in _FORBIDDEN:
            return f"contains {char!r}, which has a meaning of its own there"
    if component[-1] in ". ":
        return "has a component that ends in a dot or a space, which Windows drops"
    if _DEVICE.fullmatch(component):
        return "has a component that is the name of a device"
    if len(component.encode("utf-16-le")) // 2 > COMPONENT_LIMIT:
        return f"has a component longer than {COMPONENT_LIMIT} UTF-16 units"
    return None
