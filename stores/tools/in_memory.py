"""Secrets for tools: in files that are nowhere but in this process's memory, and so in no argv, environment or disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from stores.secret import Secret


@contextmanager
def in_memory(secret: Secret) -> Iterator[str]:
    """The path of a file that has the secret, for processes of the same user. Gone with the context, and with this process."""
    descriptor = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, secret.reveal().encode())
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
