"""The scripts, as they are sent: files of this package, never put together from parts.

Each has one parameter, its argument as JSON, and writes one line of JSON: `{"ok": true, "result": ...}`, or, with `ok` false,
`id`, `hresult`, `category` and `message` of what went wrong. The comment at its top says what its argument has.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

_SUFFIX = ".ps1"
_FOLDER = files(__package__) / "scripts"


@cache
def names() -> frozenset[str]:
    """Of all scripts."""
    return frozenset(file.name.removesuffix(_SUFFIX) for file in _FOLDER.iterdir() if file.name.endswith(_SUFFIX))


@cache
def text(name: str) -> str:
    """`KeyError` for a name that is not a script's."""
    if name not in names():
        raise KeyError(name)
    return (_FOLDER / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
