"""An empty file system in user space that stops answering when it is told to: what a dead NFS server does to those who use it.

The protocol: linux/fuse.h, version 7.31, as much of it as it takes to look at a root directory and to find nothing there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HEADER = struct.Struct("<IIQQIIII")  # fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, padding
_ANSWER = struct.Struct("<IiQ")  # fuse_out_header: len, error, unique
_LOOKUP, _FORGET, _GETATTR, _STATFS, _INIT, _INTERRUPT, _BATCH_FORGET = 1, 2, 3, 17, 26, 36, 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)

_INIT_OUT = struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0, 16, 12, 65536, 1, 16, 0, 0, *[0] * 7)
# Nothing is remembered (attr_valid 0): each look is a request. Mode 040755, two links, blocks of 4 KiB.
_ATTR_OUT = struct.pack("<QII", 0, 0, 0) + struct.pack(
    "<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0
)
_STATFS_OUT = struct.pack("<5Q4I6I", 1000, 500, 500, 100, 100, 4096, 255, 4096, 0, *[0] * 6)
_ANSWERS = {_INIT: _INIT_OUT, _GETATTR: _ATTR_OUT, _STATFS: _STATFS_OUT}

_libc = ctypes.CDLL(None, use_errno=True)


class FuseMount:
    def __init__(self, at: Path, source: str) -> None:
        self.at = at
        self._answering = threading.Event()
        self._answering.set()
        self._silent = threading.Event()
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if _libc.mount(source.encode(), os.fsencode(at), b"fuse", 0, data):
            raise OSError(ctypes.get_errno(), f"mounting at {at}")
        self._server = threading.Thread(target=self._serve, name="fuse-mount", daemon=True)
        self._server.start()

    def hang(self) -> None:
        """Nothing is answered from now on: whoever asks waits in the kernel."""
        self._silent.clear()
        self._answering.clear()
        self._silent.wait()

    def go_on(self) -> None:
        """What was asked meanwhile is answered too."""
        self._answering.set()

    def close(self) -> None:
        self.go_on()
        subprocess.run(["umount", "-f", "-l", str(self.at)], check=False, capture_output=True)
        self._server.join(30)
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            # What is not read yet can be killed where it waits, as what waits for NFS can. What was read can not.
            if not self._answering.is_set():
                self._silent.set()
                self._answering.wait()
            if not select.select([self._device], [], [], 0.02)[0] or not self._answering.is_set():
                continue
            try:
                request = os.read(self._device, 1 << 17)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, *_ = _HEADER.unpack_from(request)
            if opcode in _UNANSWERED:
                continue
            body = _ANSWERS.get(opcode, b"")
            failure = 0 if body else errno.ENOENT if opcode == _LOOKUP else errno.ENOSYS
            try:
                os.write(self._device, _ANSWER.pack(_ANSWER.size + len(body), -failure, unique) + body)
            except OSError:
                continue  # whoever asked is gone


@contextmanager
def fuse_mount(at: Path, source: str) -> Iterator[FuseMount]:
    """At the directory `at`, which is made; the kernel's table of mounts names it `source`."""
    at.mkdir(parents=True, exist_ok=True)
    mounted = FuseMount(at, source)
    try:
        yield mounted
    finally:
        mounted.close()
