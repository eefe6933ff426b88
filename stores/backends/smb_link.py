"""One connection to a share: session and tree on smbprotocol, with what that leaves to its users.

What is added here: answers have to be protected where the session is, waiting ends (by silence, or when it is told to), credits
are kept to, symbolic links are not followed. Blocking; for threads. Several may use one link at once.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
import uuid
from typing import Any

from smbprotocol.connection import Commands, Connection, Dialects, Request
from smbprotocol.exceptions import SMBAuthenticationError, SMBException, SMBResponseException
from smbprotocol.header import NtStatus, Smb2Flags, SMB2HeaderRequest
from smbprotocol.open import SMB2WriteRequest
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from stores.backends.smb_errors import Lost, not_private, translated
from stores.backends.smb_place import SmbLogin, SmbPlace
from stores.backends.smb_sealing import CIPHERS, Sealer
from stores.backends.smb_transport import Transport
from stores.contract import KiB, MiB
from stores.errors import AccessDenied
from stores.settings import SmbSettings

PIECE = 1 * MiB
"""Bytes of one READ or WRITE: faster than larger and smaller ones."""

WIDTH = 8
"""READs or WRITEs under way at once on one link."""

CREDIT = 64 * KiB
"""Bytes that one credit pays for ([MS-SMB2] 3.1.5.2)."""

_WRITE = struct.Struct("<HHIQ16s16x")  # the fixed part of a WRITE ([MS-SMB2] 2.2.21), and where its data begin
_WRITE_DATA = 64 + _WRITE.size

_SPARE = 8  # credits kept for calls beside those that move bytes
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


class _Connection(Connection):  # type: ignore[misc]  # the library has no types
    """smbprotocol's, with our transport, our way to wait, and no trust in answers without protection."""

    def __init__(self, place: SmbPlace, transport: Transport, silence_s: float) -> None:
        self._ours = transport
        self._silence_s = silence_s
        self._stop_at: float | None = None
        self._sealer = Sealer()
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

    def send_write(self, handle: bytes, offset: int, data: memoryview, session: Any, tree: Any) -> Any:
        """As the library's `send` of a WRITE, but that `data`, which may be used again when this returns, is nowhere copied.
        For one thread at a time."""
        header = SMB2HeaderRequest()
        charge = credits_for(len(data)) if self.supports_multi_credit else 0
        with self.sequence_lock:
            header["message_id"] = self.sequence_window["low"]
            self.sequence_window["low"] += max(charge, 1)
        header["command"] = Commands.SMB2_WRITE
        header["credit_charge"] = header["credit_request"] = charge
        header["session_id"], header["tree_id"] = session.session_id, tree.tree_connect_id
        header["data"] = _WRITE.pack(_WRITE.size + 1, _WRITE_DATA, len(data), offset, handle)
        request = Request(header, SMB2WriteRequest, self, session_id=session.session_id)
        self.outstanding_requests[header["message_id"].get_value()] = request
        self._check_worker_running()
        sealed = self._sealer.seal([header.pack(), data], key=session.encryption_key, session_id=session.session_id)
        self._ours.send_parts(sealed.header, sealed.content)
        return request

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


class Link:
    """Open after `open`. `PolicyRefused` where the server does not protect as the settings ask."""

    def __init__(self, place: SmbPlace, settings: SmbSettings, *, connect_timeout_s: float, silence_s: float) -> None:
        self.place = place
        self.piece = PIECE
        """Bytes that one READ or WRITE on this link may have."""
        self.width = WIDTH
        """How many of them may be under way."""
        self._settings = settings
        self._silence_s = silence_s
        self._transport = Transport(place.host, place.port, connect_timeout_s=connect_timeout_s, silence_s=silence_s)
        self._connection = _Connection(place, self._transport, silence_s)
        self._session: Any = None
        self._tree: Any = None
        self._sending = threading.Lock()

    def open(self, login: SmbLogin) -> None:
        """Connects, logs in and enters the share. Errors are typed; nothing is left open by a failure."""
        try:
            with translated(self.place.name):
                self._open(login)
        except BaseException:
            self.close()
            raise

    def _open(self, login: SmbLogin) -> None:
        connection = self._connection
        connection.connect(timeout=self._silence_s)
        if self._settings.encryption and not connection.supports_encryption:
            raise not_private(self.place.name, "encryption")
        self._session = Session(
            connection,
            username=login.account,
            password=login.password.reveal() if login.password else None,
            require_encryption=self._settings.encryption,
            auth_protocol=self._settings.authentication,
        )
        try:
            self._session.connect()
        except (SMBResponseException, SMBAuthenticationError):
            raise
        except ImportError:
            raise AccessDenied(
                f"{self.place.name}: Kerberos needs storage-agent[kerberos]; install it, or allow NTLM by"
                " smb.authentication"
            ) from None
        except SMBException:  # a guest's session has no keys
            raise not_private(self.place.name, "session with a user of its own") from None
        self._session.password = None  # the library keeps it, and nothing needs it any more
        self._tree = TreeConnect(self._session, self.place.unc)
        self._tree.connect()
        self._tree.is_dfs_share = False  # paths go to this server as they are; a DFS link is an error
        self._take_credits()

    def _take_credits(self) -> None:
        """As many as the whole width needs, as far as the server gives them, and what may be asked at once by them."""
        largest = min(PIECE, self._connection.max_read_size, self._connection.max_write_size)
        wanted = WIDTH * -(-largest // CREDIT) + _SPARE
        if self._connection.supports_multi_credit and self._credits < wanted:
            self._connection.echo(sid=self._session.session_id, credit_request=min(wanted, 512))
        self.piece, self.width = shape(self._credits, largest)

    @property
    def _credits(self) -> int:
        window = self._connection.sequence_window
        return int(window["high"] - window["low"])

    @property
    def alive(self) -> bool:
        return self._transport.connected and self._connection._t_exc is None

    @property
    def encrypted(self) -> bool:
        return bool(self._session.encrypt_data)

    def send(self, message: Any, *, payload: int = 0) -> Any:
        """A request under way, for `receive`. Waits for credits that pay for `payload` bytes. `Lost`."""
        with self._sending:
            self._await_credits(payload)
            return self._connection.send(message, self._session.session_id, self._tree.tree_connect_id)

    def send_write(self, handle: bytes, offset: int, data: memoryview) -> Any:
        """A WRITE under way, as `send`. `data` may be used again when this returns."""
        if self._connection.seals(self._session, self._tree):
            with self._sending:
                self._await_credits(len(data))
                return self._connection.send_write(handle, offset, data, self._session, self._tree)
        request = SMB2WriteRequest()
        request["length"] = len(data)
        request["offset"] = offset
        request["file_id"] = handle
        request["buffer"] = bytes(data)
        return self.send(request, payload=len(data))

    def _await_credits(self, payload: int) -> None:
        deadline = time.monotonic() + self._silence_s
        while self._credits < credits_for(payload):
            self._connection.wait_until(deadline, "credits")
            time.sleep(_POLL_S / 10)

    def receive(self, request: Any) -> bytes:
        """The answer's body. `SMBResponseException` for one that is not a success, `Lost`."""
        return bytes(self._connection.receive(request)["data"].get_value())

    def call(self, message: Any, *, payload: int = 0) -> bytes:
        return self.receive(self.send(message, payload=payload))

    def stop(self) -> None:
        """From any thread: calls end soon, by an answer or by `Lost`; and so do later ones, until `go_on`."""
        self._connection.stop()

    def go_on(self) -> None:
        self._connection.go_on()

    def close(self) -> None:
        """Ends the connection; the server closes what is open on it. Idempotent."""
        self._transport.close()
        self._connection.disconnect(close=False)  # waits for the library's thread
        self._transport.release()


def credits_for(payload: int) -> int:
    """What a request or its answer costs."""
    return max(1, -(-payload // CREDIT))


def shape(granted: int, largest: int) -> tuple[int, int]:
    """Length of a piece and how many may be under way, with `granted` credits and pieces of at most `largest` bytes."""
    usable = max(1, granted - _SPARE)
    piece = min(largest, usable * CREDIT)
    return piece, max(1, min(WIDTH, usable // -(-piece // CREDIT)))
