"""Which refs are names on an SMB share: decided by the text alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.smb_names import check_name, is_name, wire_path
from stores.errors import InvalidReference
from stores.paths import is_ref
from tests.contract.store_hooks import HOSTILE_REFS


@pytest.mark.parametrize(
    "ref",
    [
        *HOSTILE_REFS,
        "..\\secret",
        "a\\b",
        "disk.vhdx:stream",
        "disk.vhdx::$DATA",
        "C:/x",
        "a?",
        "a*",
        'a"b',
        "a|b",
        "<a>",
        "ends with a dot.",
        "ends with a space ",
        "dir./file",
        "dir /file",
        "CON",
        "con.vhdx",
        "dir/NUL",
        "Aux.tar.gz",
        "com1",
        "LPT9.txt",
        "com¹",
        "CONIN$",
        "nul .txt",
    ],
)
def test_hostile_name_is_refused(ref: str) -> None:
    with pytest.raises(InvalidReference):
        check_name(ref)
    assert not is_name(ref)


@pytest.mark.parametrize(
    "ref",
    [
        "console.vhdx",
        "com10",
        "nullable",
        "a.b/c",
        ".hidden",
        "with space",
        "ünïcödé/日本語/🦀",
        "percent%41",
        "a" * 255,
    ],
)
def test_plain_name_is_taken(ref: str) -> None:
    assert check_name(ref) == tuple(ref.split("/"))


@given(st.text(max_size=40))
def test_taken_names_are_refs_whose_components_mean_themselves(ref: str) -> None:
    if not is_name(ref):
        return
    assert is_ref(ref)
    path = wire_path(*check_name(ref))
    assert path.split("\\") == ref.split("/")
    assert not set(path) & set('":*<>?|/')
    assert all(part == part.rstrip(". ") for part in path.split("\\"))
