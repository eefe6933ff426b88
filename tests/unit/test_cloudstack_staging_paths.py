"""Paths that stand for objects: what one agent writes another one reads, and nobody else can write one."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from agent.transports.cloudstack.staging_paths import LIMIT, Kind, Staged, path_of, staged_of, store_mark
from stores.errors import InvalidReference, TooLarge
from stores.paths import is_ref
from stores.secret import Secret

KEY, OTHER = Secret("k" * 32), Secret("l" * 32)
MARK = store_mark("s3:https://s3.example.org/b")
TEMPLATE = Staged(Kind.REFERENCE, MARK, "template/tmpl/2/201/201-2-aaaa/debian.qcow2", 734003200, 1_700_000_000_123)

text = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40)
keys = st.lists(text, min_size=1, max_size=5).map("/".join).filter(is_ref)
numbers = st.integers(0, 2**64 - 1)
objects = st.builds(Staged, st.sampled_from(Kind), st.binary(min_size=8, max_size=8), keys, numbers, numbers)


def fits(staged: Staged) -> str:
    try:
        return path_of(staged, KEY)
    except TooLarge:
        assume(False)
        raise


@given(objects, text.map(Secret))
def test_what_is_written_is_read_by_whoever_has_the_key(staged: Staged, key: Secret) -> None:
    try:
        path = path_of(staged, key)
    except TooLarge:
        assert len(staged.key.encode()) > LIMIT - 59
        return
    assert is_ref(path)
    assert len(path.encode()) <= LIMIT
    assert staged_of(path, key) == staged


def test_the_form_stays_since_servers_keep_such_paths_for_months() -> None:
    path = path_of(TEMPLATE, KEY)
    assert path == (
        "template/tmpl/2/201/201-2-aaaa/s3~"
        + base64.urlsafe_b64encode(_fields(TEMPLATE) + _mac(TEMPLATE)).decode().rstrip("=")
        + "/debian.qcow2"
    )
    assert path.startswith("template/tmpl/2/201/")
    assert path.endswith(".qcow2")


def _fields(staged: Staged) -> bytes:
    return bytes([staged.kind]) + staged.store + staged.size.to_bytes(8, "big") + staged.modified.to_bytes(8, "big")


def _mac(staged: Staged) -> bytes:
    """RFC 2104, written out."""
    inner = bytes(byte ^ 0x36 for byte in KEY.reveal().encode().ljust(64, b"\0"))
    outer = bytes(byte ^ 0x5C for byte in KEY.reveal().encode().ljust(64, b"\0"))
    text = b"storage-agent staging path 1\0" + _fields(staged) + staged.key.encode()
    return hashlib.sha256(outer + hashlib.sha256(inner + text).digest()).digest()[:16]


@given(objects)
def test_another_key_does_not_fit(staged: Staged) -> None:
    with pytest.raises(InvalidReference, match="not made by an agent with the same key"):
        staged_of(fits(staged), OTHER)


@given(objects, st.data())
def test_one_changed_character_is_enough_to_be_refused(staged: Staged, data: st.DataObject) -> None:
    """Wherever it is: in the token, in the folder, in the file's name."""
    path = fits(staged)
    place = data.draw(st.integers(0, len(path) - 1))
    put = data.draw(st.sampled_from("AZaz09-_~./=+ é\\"))
    changed = path[:place] + put + path[place + 1 :]
    assume(changed != path)
    _stands_for_nothing_else(changed, staged)


@given(objects, st.data())
def test_a_path_that_was_cut_or_grew_is_refused(staged: Staged, data: st.DataObject) -> None:
    path = fits(staged)
    cut = data.draw(st.integers(0, len(path) - 1))
    for changed in (path[:cut], path[cut + 1 :], f"{path}x", f"{path}/x", f"x{path}", f"a/{path}", path + "\0"):
        _stands_for_nothing_else(changed, staged)


def _stands_for_nothing_else(path: str, staged: Staged) -> None:
    """Refused; or the token is no token any more, and then the path stands for nothing."""
    try:
        found = staged_of(path, KEY)
    except InvalidReference:
        return
    assert found is None, (found, staged)
    parts = path.split("/")
    assert len(parts) < 2 or not parts[-2].startswith("s3~")


@given(st.text(max_size=300))
@example("")
@example("/")
@example("s3~/x")
@example("a/s3~/b")
@example("a/s3~é/b")
@example("a/s3~" + "A" * 55 + "/b")
@example("a/s3~" + "A" * 55 + "/..")
@example("a/s3~" + "=" * 55 + "/b")
@example("a/s3~" + "A" * 100_000 + "/b")
@example("\ud800/s3~A/\ud800")
def test_any_text_stands_for_nothing_or_is_refused(path: str) -> None:
    with suppress(InvalidReference):
        assert staged_of(path, KEY) is None


def test_a_token_has_one_spelling() -> None:
    """The last character carries two bits that say nothing: they have to be zero."""
    path = path_of(TEMPLATE, KEY)
    before, token, file = path.rsplit("/", 2)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = alphabet.index(token[-1])
    assert at % 4 == 0
    for other in range(at + 1, at + 4):
        with pytest.raises(InvalidReference):
            staged_of(f"{before}/{token[:-1]}{alphabet[other]}/{file}", KEY)
    with pytest.raises(InvalidReference):
        staged_of(f"{before}/{token}=/{file}", KEY)


def test_the_longest_key_and_one_more() -> None:
    longest = Staged(Kind.OWN, MARK, "a/" + "b" * (LIMIT - 59 - 2))
    assert len(path_of(longest, KEY)) == LIMIT
    with pytest.raises(TooLarge, match=f"has {LIMIT - 59}"):
        path_of(Staged(Kind.OWN, MARK, longest.key + "c"), KEY)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a//b", "a/\n"])
def test_what_is_no_name_of_an_object_gets_no_path(key: str) -> None:
    with pytest.raises(InvalidReference):
        path_of(Staged(Kind.REFERENCE, MARK, key), KEY)


def test_stores_differ_by_endpoint_and_bucket() -> None:
    assert len({store_mark(f"s3:{endpoint}/{bucket}") for endpoint in ("a", "b") for bucket in ("c", "d")}) == 4
