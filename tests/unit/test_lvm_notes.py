"""Notes as tags of a volume group: what LVM takes for a tag, and what becomes of tags that others have changed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.backends.lvm_notes import decoded, encoded, tags_of
from stores.errors import IntegrityError
from stores.paths import is_ref

NOTES = st.dictionaries(st.text(min_size=1, max_size=200).filter(is_ref), st.binary(max_size=5000), max_size=5)
A_TAG = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.\-/=!:&#]{0,1023}")  # lvm(8)


def tags(notes: Mapping[str, bytes]) -> set[str]:
    return {tag for ref, content in notes.items() for tag in encoded(ref, content)}


@given(NOTES)
def test_notes_come_back_from_tags_that_lvm_takes(notes: Mapping[str, bytes]) -> None:
    written = tags(notes)
    assert all(A_TAG.fullmatch(tag) for tag in written)
    assert dict(decoded([*written, "somebody.elses", "sa2.x"])) == notes
    for ref, content in notes.items():
        assert tags_of(ref, written) == encoded(ref, content)


@given(st.binary(max_size=3000), st.data())
def test_changed_tags_are_noticed(content: bytes, data: st.DataObject) -> None:
    written = sorted(encoded("image", content))
    lost = data.draw(st.sampled_from(written))
    cut = lost[:-1] if data.draw(st.booleans()) else None
    left = [tag for tag in written if tag != lost] + ([cut] if cut else [])
    if not left:
        assert dict(decoded(left)) == {}
        return
    with pytest.raises(IntegrityError, match="vgcfgrestore"):
        decoded(left)


@pytest.mark.parametrize("tag", ["sa1.", "sa1.k.0.1", "sa1.k.x.1.AAAA", "sa1.k.0.1.####", "sa1.k.0.1.AAAA"])
def test_strange_tags_are_noticed(tag: str) -> None:
    with pytest.raises(IntegrityError):
        decoded([tag])
