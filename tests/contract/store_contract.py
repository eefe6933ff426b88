"""What every store must do, as mixins: a test module subclasses them, says how to make its store, and how to look past it.

`StoreReads` is for every store, `StoreLists`, `StoreWrites` and `StoreUploads` for those that can; `StoreContract` is all of
them. A subclass gives a `store` fixture and the hooks of `store_hooks.py`, which must not go through the store under test:

    class TestS3Store(StoreContract):
        @pytest.fixture
        async def store(self, bucket, seaweed): ...
        async def put_directly(self, ref, data): ...
        async def read_directly(self, ref): ...
        async def everything_left(self): ...
"""

from __future__ import annotations

from tests.contract.store_lists import StoreLists
from tests.contract.store_reads import StoreReads
from tests.contract.store_uploads import StoreUploads
from tests.contract.store_writes import StoreWrites


class StoreContract(StoreReads, StoreLists, StoreWrites, StoreUploads):
    """All of it."""
