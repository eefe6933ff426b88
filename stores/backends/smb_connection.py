"""One connection of smbprotocol's, with our transport, our way to wait, and WRITEs of our own. Blocking; for threads.

What is added here: answers have to be protected where the session is, waiting ends (by silence, or when it is told to), and
neither the data of an encrypted WRITE nor its answer goes through the library's structures.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from smbprotocol.connection import Connection, Dialects
from smbprotocol.exceptions import SMBException, SMBResponseException
from smbprotocol.header import NtStatus, Smb2Flags, SMB2HeaderResponse

from stores.backends.smb_errors import Lost
from stores.backends.smb_place import SmbPlace
from stores.backends.smb_sealing import CIPHERS, Sealer, unsealed
from stores.backends.smb_transport import Transport
from stores.backends.smb_writing import WriteAnswer, write_answer, write_request
from stores.contract import KiB

CREDIT = 64 * KiB
"""Bytes that one credit pays for ([MS-SMB2] 3.1.5.2)."""

_POLL_S = 0.05  # how soon somebody who waits sees that he is to stop
_PENDING = 10  # so many times as long we wait for what the server says it is working on
_GRACE_S = 2.0  # how long a call that is to stop waits for the answer that is on its way

# They log packets and tokens at debug level, and user names at info level. What fails is raised.
for _name in ("smbprotocol", "spnego"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class _Requests(dict[int, Any]):
    """Those that wait for an answer. The library's receiving thread goes over them when a connection ends, while others still
    take theirs away: seen as "dictionary changed size", after which nobody was told."""

    def values(self) -> Any:
        return list(super().values())


class _Write:
    """A WRITE under way."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.answer: WriteAnswer | None = None
        self.pending = False


class SmbConnection(Connection):  # type: ignore[misc]  # the library has no types
    """smbprotocol's, with our transport, our way to wait, and no trust in answers without protection."""

    def __init__(self, place: SmbPlace, transport: Transport, silence_s: float) -> None:
        self._ours = transport
        self._silence_s = silence_s
        self._stop_at: float | None = None
        self._sealer = Sealer()
        self._writes: dict[int, _Write] = {}
        self._writer: Any = None  # the session of those
        transport.take = self._take_answer
        super().__init__(uuid.uuid4(), place.host, place.port, require_signing=True)
        self.outstanding_requests = _Requests()

    @property
    def transport(self) -> Transport:
        return self._ours

    @transport.setter
    def transport(self, other: object) -> None:
        """The library makes one of its own in `connect`, and has not opened it yet."""

    def _check_worker_running(self) -> None:
        """`Lost` where the receiving thread ended with anything but the library's own errors: an answer that could not be
        decrypted, for one."""
        if self._t_exc is not None and not isinstance(self._t_exc, SMBException | OSError):
            self.disconnect(False)
            raise Lost("the server's answer could not be verified") from self._t_exc
        super()._check_worker_running()

    def stop(self) -> None:
        """Whoever waits for an answer gets it soon, or `Lost`."""
        self._stop_at = time.monotonic() + _GRACE_S

    def go_on(self) -> None:
        self._stop_at = None

    def wait_until(self, deadline: float, what: str) -> None:
        """`Lost` when there is no sense in waiting on."""
        now = time.monotonic()
        if self._t_exc is not None:
            raise Lost("the server's answer could not be verified")
        if not self.transport.connected:
            raise Lost("the connection was closed")
        if now > deadline or (self._stop_at is not None and now > self._stop_at):
            self.transport.close()
            raise Lost(f"the server gave no {what} in time")

    def receive(
        self, request: Any, wait: bool = True, timeout: float | None = None, resolve_symlinks: bool = True
    ) -> Any:
        deadline = time.monotonic() + (timeout or self._silence_s)
        while True:
            while not request.response_event.wait(_POLL_S):
                self.wait_until(deadline, "answer")
            with request.response_event_lock:
                response = request.response
                if response is None:  # the event is set for everybody when the connection ends
                    self.wait_until(0, "answer")
                status = response["status"].get_value()
                if status == NtStatus.STATUS_PENDING:  # the server is at it: somebody's lock, or a disk, takes its time
                    deadline = time.monotonic() + _PENDING * self._silence_s
                    request.response_event.clear()
                    continue
            break
        self.outstanding_requests.pop(request.message["message_id"].get_value(), None)
        if status != NtStatus.STATUS_SUCCESS:
            raise SMBResponseException(response)
        return response

    def seals(self, session: Any, tree: Any) -> bool:
        """Whether `send_write` can be used."""
        encrypted = session.encrypt_data or tree.encrypt_data
        return encrypted and self.dialect >= Dialects.SMB_3_1_1 and self.cipher_id in CIPHERS

    def send_write(self, handle: bytes, offset: int, data: memoryview, session: Any, tree: Any) -> Callable[[], bytes]:
        """A WRITE under way; what is returned waits for the body of its answer, as `receive` does. `data` is nowhere copied,
        and may be used again when this returns. For one thread at a time."""
        charge = credits_for(len(data))
        self._writer = session
        with self.sequence_lock:
            number = self.sequence_window["low"]
            self.sequence_window["low"] += charge
        waiting = self._writes[number] = _Write()
        self._check_worker_running()
        head = write_request(
            number=number,
            charge=charge,
            session_id=session.session_id,
            tree_id=tree.tree_connect_id,
            handle=handle,
            offset=offset,
            length=len(data),
        )
        sealed = self._sealer.seal([head, data], key=session.encryption_key, session_id=session.session_id)
        self._ours.send_parts(sealed.header, sealed.content)
        return lambda: self._written(waiting)

    def _take_answer(self, packet: bytes) -> bool:
        """In the receiving thread: whether it is the answer to a WRITE of ours. All else is the library's to judge."""
        session = self._writer
        if not self._writes:
            return False
        message = unsealed(packet, key=session.decryption_key, session_id=session.session_id)
        answer = write_answer(message) if message is not None else None
        waiting = self._writes.get(answer.number) if answer is not None else None
        if answer is None or waiting is None:
            return False
        with self.sequence_lock:
            self.sequence_window["high"] += answer.credits
        if answer.status == NtStatus.STATUS_PENDING:
            waiting.pending = True
            return True
        del self._writes[answer.number]
        waiting.answer = answer
        waiting.there.set()
        return True

    def _written(self, waiting: _Write) -> bytes:
        deadline = time.monotonic() + self._silence_s
        while not waiting.there.wait(_POLL_S):
            if waiting.pending:
                waiting.pending = False
                deadline = time.monotonic() + _PENDING * self._silence_s
            self.wait_until(deadline, "answer")
        answer = waiting.answer
        assert answer is not None
        if answer.status != NtStatus.STATUS_SUCCESS:
            header = SMB2HeaderResponse()
            header.unpack(answer.message)
            raise SMBResponseException(header)
        return answer.body

    def verify_signature(self, header: Any, session_id: int, force: bool = False) -> None:
        """The library asks this for every answer that came unencrypted, and lets pass what is not signed either. An answer in
        an encrypted session has to be encrypted, one in a signed session signed ([MS-SMB2] 3.2.5.1.1, 3.2.5.1.3)."""
        session = self.session_table.get(session_id)
        if session is not None and not force:
            if session.encrypt_data:
                raise SMBException("an answer came unencrypted in an encrypted session")
            signed = header["flags"].has_flag(Smb2Flags.SMB2_FLAGS_SIGNED)
            interim = header["status"].get_value() == NtStatus.STATUS_PENDING
            if session.signing_required and not signed and not interim:
                raise SMBException("an answer came without a signature in a signed session")
        super().verify_signature(header, session_id, force)


def credits_for(payload: int) -> int:
    """What a request or its answer costs."""
    return max(1, -(-payload // CREDIT))
