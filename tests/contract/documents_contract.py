"""What every keeper of documents must do, as a mixin: a test module subclasses it and says how to make its `Documents`.

class TestSomeDocuments(DocumentsContract):
    @pytest.fixture
    async def documents(self, ...): ...
    async def image(self, ref): ...        # there is an image of that name from now on
    async def left(self): ...              # how many documents are kept, versions and unfinished ones included
"""

from __future__ import annotations

from abc import abstractmethod

import pytest
from pydantic import BaseModel

from hypervisors.documents import About, Documents
from stores.errors import AlreadyExists, IntegrityError

RECORD = About("volumes/ROOT-1", ("record",))
TOKEN = "command-1"
NASTY = ("a/b", "%2F", "#1", "ünï", "..x", "x" * 100, "ref with blanks")


class Note(BaseModel):
    text: str


class DocumentsContract:
    @abstractmethod
    async def image(self, ref: str) -> None: ...

    @abstractmethod
    async def left(self) -> int: ...

    async def test_a_document_is_kept(self, documents: Documents) -> None:
        await self.image(RECORD.image)
        assert await documents.read(RECORD) is None
        await documents.put(RECORD, b'{"a": 1}\n', token=TOKEN)
        assert await documents.read(RECORD) == b'{"a": 1}\n'
        assert await self.left() == 1

    @pytest.mark.parametrize(
        "content", [b"", b"\0\xff\r\n", b"base64:", "sn\u00f6\ufffe\U0001f4be".encode(), b"x" * 30_000]
    )
    async def test_any_bytes_are_kept_as_they_are(self, documents: Documents, content: bytes) -> None:
        await self.image(RECORD.image)
        await documents.put(RECORD, content, token=TOKEN)
        assert await documents.read(RECORD) == content

    async def test_one_that_is_there_is_replaced_only_when_told(self, documents: Documents) -> None:
        await self.image(RECORD.image)
        await documents.put(RECORD, b"1", token=TOKEN)
        with pytest.raises(AlreadyExists):
            await documents.put(RECORD, b"2", token="command-2")
        assert await documents.read(RECORD) == b"1"
        for content in (b"3", b"4", b"4"):
            await documents.put(RECORD, content, token="command-2", replace=True)
            assert await documents.read(RECORD) == content
        assert await self.left() == 1

    async def test_removing_is_idempotent(self, documents: Documents) -> None:
        await documents.remove(About("none", ("record",)))
        await self.image(RECORD.image)
        await documents.put(RECORD, b"1", token=TOKEN)
        for _ in range(2):
            await documents.remove(RECORD)
            assert await documents.read(RECORD) is None
        assert await self.left() == 0
        await documents.put(RECORD, b"2", token=TOKEN)
        assert await documents.read(RECORD) == b"2"

    async def test_names_are_those_of_the_next_level_in_order(self, documents: Documents) -> None:
        await self.image("a")
        await self.image("b")
        for name in NASTY:
            await documents.put(About("a", ("children", name)), b"", token=TOKEN)
            await documents.put(About("a", ("sent", name, "x")), b"", token=TOKEN)
            await documents.put(About("a", ("sent", name, "y")), b"", token=TOKEN)
        await documents.put(About("a", ("record",)), b"", token=TOKEN)
        await documents.put(About("b", ("children", "other")), b"", token=TOKEN)
        for folder in ("children", "sent"):
            assert sorted(await documents.names(About("a", (folder,)))) == sorted(NASTY)
        assert list(await documents.names(About("a", ("sent", "a/b")))) == ["x", "y"]
        assert list(await documents.names(About("a", ("nothing",)))) == []
        assert list(await documents.names(About("none", ("children",)))) == []
        assert await documents.read(About("a", ("children", "nobody"))) is None

    async def test_what_one_image_is_told_no_other_knows(self, documents: Documents) -> None:
        for ref in ("a", "a/b"):
            await self.image(ref)
        await documents.put(About("a", ("children", "b")), b"1", token=TOKEN)
        await documents.put(About("a/b", ("record",)), b"2", token=TOKEN)
        assert await documents.read(About("a", ("record",))) is None
        assert await documents.read(About("a/b", ("children", "b"))) is None
        await documents.remove(About("a", ("children", "b")))
        assert await documents.read(About("a/b", ("record",))) == b"2"

    async def test_discarding_leaves_what_is_whole(self, documents: Documents) -> None:
        await documents.discard(RECORD, token=TOKEN)
        await self.image(RECORD.image)
        await documents.put(RECORD, b"1", token=TOKEN)
        for token in (TOKEN, "command-2"):
            await documents.discard(RECORD, token=token)
        assert await documents.read(RECORD) == b"1"

    async def test_damage_is_said(self, documents: Documents) -> None:
        await self.image(RECORD.image)
        await documents.save(RECORD, Note(text="x"), token=TOKEN)
        assert await documents.load(RECORD, Note, otherwise="remove it") == Note(text="x")
        await documents.put(RECORD, b"{}", token=TOKEN, replace=True)
        with pytest.raises(IntegrityError, match=r"record of volumes/ROOT-1 is damaged .* remove it"):
            await documents.load(RECORD, Note, otherwise="remove it")
        assert await documents.load(About("none", ("record",)), Note, otherwise="") is None
