"""Whether a pool can be used, and threads for touching it that may be left behind when its mount hangs."""

from __future__ import annotations

from stores.errors import Retry, StoreError


class PoolSick(StoreError):
    """The pool's disk, mount or ledger failed or did not answer. It is bypassed, and tried again later."""

    retry = Retry.YES
