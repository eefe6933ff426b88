"""Uploads, from the wish to stage one to what is remembered of its end. Owners and leases are those of the pool.

An upload that is staged has its entry, which is dirty until the store has it. Sizes are bytes of content. What owners who are
gone were at is everybody's again, or never was (`reclaim`).
"""

from stores.cache.ledger.uploads.care import (
    Totals,
    acknowledge,
    begin_cancel,
    cancelled,
    drop_copies,
    ended,
    forget_ended,
    list_uploads,
    retry,
    totals,
)
from stores.cache.ledger.uploads.rows import (
    OVER,
    STAGED,
    Upload,
    Wanted,
    find,
    find_by_key,
    get,
    unstored_bytes,
)
from stores.cache.ledger.uploads.sending import (
    Finished,
    claim,
    due,
    finish,
    next_due_s,
    note,
    put_back,
    reclaim,
    stores_waiting,
)
from stores.cache.ledger.uploads.staging import Admission, admit, enlarge, stage, withdraw

__all__ = [
    "OVER",
    "STAGED",
    "Admission",
    "Finished",
    "Totals",
    "Upload",
    "Wanted",
    "acknowledge",
    "admit",
    "begin_cancel",
    "cancelled",
    "claim",
    "drop_copies",
    "due",
    "ended",
    "enlarge",
    "find",
    "find_by_key",
    "finish",
    "forget_ended",
    "get",
    "list_uploads",
    "next_due_s",
    "note",
    "put_back",
    "reclaim",
    "retry",
    "stage",
    "stores_waiting",
    "totals",
    "unstored_bytes",
    "withdraw",
]
