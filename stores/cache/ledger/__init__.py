"""The pool's book: who holds how many bytes, and what may go.

`used + reserved <= limit` holds after every transaction, in every process that shares the database (after a limit was made
smaller, nothing new comes in until it does again). Every function here is one transaction or a part of one, given to
`Database.transact`: it reads, decides (`stores.cache.policy`) and writes without waiting; files are touched by others, before
or after.

A charge is what an object occupies on disk at most: its size rounded up to whole blocks, and its metadata.

Ids of owners, reservations, pins and places in the queue are chosen by the caller and never used for anything else, so that
what was made by a transaction whose outcome the caller did not hear of can be asked for again, or undone.
"""

from stores.cache.ledger.content import (
    Follow,
    Found,
    Hit,
    Leaving,
    Miss,
    TakeOver,
    WrongState,
    look,
    pin,
    proved,
    publish,
    quarantine,
    set_state,
    unpin,
    unproved,
)
from stores.cache.ledger.eviction import Relief, evict, evicted, relieve, spare
from stores.cache.ledger.owners import Abandoned, reap, register, renew, retire
from stores.cache.ledger.reports import (
    Holder,
    Holding,
    PinShown,
    Shown,
    Statistics,
    holders,
    list_entries,
    show_entry,
    statistics,
)
from stores.cache.ledger.room import Answer, filling, grow, leave, note_progress, release, request, wait_in_line
from stores.cache.ledger.rows import (
    BLOCK,
    METADATA,
    Entry,
    Facts,
    Reservation,
    charge_of,
    entry,
    entry_by_id,
    file_of,
    is_staged,
    staged_key,
)
from stores.cache.ledger.sums import Sums, check_sums, correct_sums, open_pool, pool_state

__all__ = [
    "BLOCK",
    "METADATA",
    "Abandoned",
    "Answer",
    "Entry",
    "Facts",
    "Follow",
    "Found",
    "Hit",
    "Holder",
    "Holding",
    "Leaving",
    "Miss",
    "PinShown",
    "Relief",
    "Reservation",
    "Shown",
    "Statistics",
    "Sums",
    "TakeOver",
    "WrongState",
    "charge_of",
    "check_sums",
    "correct_sums",
    "entry",
    "entry_by_id",
    "evict",
    "evicted",
    "file_of",
    "filling",
    "grow",
    "holders",
    "is_staged",
    "leave",
    "list_entries",
    "look",
    "note_progress",
    "open_pool",
    "pin",
    "pool_state",
    "proved",
    "publish",
    "quarantine",
    "reap",
    "register",
    "release",
    "relieve",
    "renew",
    "request",
    "retire",
    "set_state",
    "show_entry",
    "spare",
    "staged_key",
    "statistics",
    "unpin",
    "unproved",
    "wait_in_line",
]
