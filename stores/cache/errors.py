"""What a cache's ledger can end a call with. Apart from the ledger, so that who only names it needs no database."""

from __future__ import annotations

from stores.errors import Retry, StoreError


class LeaseLost(StoreError):
    """This process was silent for longer than its lease, and others went on without it. Nothing of it was published."""

    retry = Retry.YES
