"""The files of one pool. Everything here blocks; `stores.cache.pool` calls it in threads that it can do without.

    <pool>/layout.json                      which pool this is, and the version of this layout
    <pool>/lock                             locked while a start brings layout and ledger up to date
    <pool>/owners/<owner>                   locked by a process for as long as it lives
    <pool>/fill/<reservation>.part  .json   what arrives
    <pool>/objects/<2 hex>/<file>   .json   what is whole: an entry and its description
    <pool>/quarantine/<file>        .json   what did not prove itself

A name in `objects` or `fill` is used once and never again, so that removing a file is safe whoever else works on the pool.
Everything is opened below the pool's descriptor without following symbolic links. Errors are typed (`stores.os_errors`).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stores.cache.description import LAYOUT, Description
from stores.cache.ledger import Entry, Facts, LeaseLost
from stores.errors import AccessDenied, IntegrityError, NotFound
from stores.os_errors import is_no_space, no_space, translate
from stores.paths import open_directory

FOLDERS = ("owners", "fill", "objects", "quarantine")
BUCKETS = tuple(f"{number:02x}" for number in range(256))
_NAME = re.compile(r"[0-9a-f]{2}[0-9a-z._-]{0,200}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
