"""One connection to a share: session and tree on smbprotocol, with what that leaves to its users.

What is added here: servers have to protect as the settings ask, credits are kept to, symbolic links are not followed. Blocking;
for threads. Several may use one link at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from smbprotocol.exceptions import SMBAuthenticationError, SMBException, SMBResponseException
from smbprotocol.open import SMB2WriteRequest
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from stores.backends.smb_connection import CREDIT, SmbConnection, credits_for
from stores.backends.smb_errors import not_private, translated
from stores.backends.smb_place import SmbLogin, SmbPlace
from stores.backends.smb_transport import Transport
from stores.contract import MiB
from stores.errors import AccessDenied
from stores.settings import SmbSettings

PIECE = 1 * MiB
"""Bytes of one READ or WRITE: faster than larger and smaller ones."""

WIDTH = 8
"""READs or WRITEs under way at once on one link."""

_SPARE = 8  # credits kept for calls beside those that move bytes
_POLL_S = 0.005  # how soon somebody who waits for credits looks again


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
        self._connection = SmbConnection(place, self._transport, silence_s)
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

    def send_write(self, handle: bytes, offset: int, data: memoryview) -> Callable[[], bytes]:
        """A WRITE under way; what is returned is the `receive` of it. `data` may be used again when this returns."""
        if self._connection.seals(self._session, self._tree):
            with self._sending:
                self._await_credits(len(data))
                return self._connection.send_write(handle, offset, data, self._session, self._tree)
        request = SMB2WriteRequest()
        request["length"] = len(data)
        request["offset"] = offset
        request["file_id"] = handle
        request["buffer"] = bytes(data)
        return partial(self.receive, self.send(request, payload=len(data)))

    def _await_credits(self, payload: int) -> None:
        deadline = time.monotonic() + self._silence_s
        while self._credits < credits_for(payload):
            self._connection.wait_until(deadline, "credits")
            time.sleep(_POLL_S)

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


def shape(granted: int, largest: int) -> tuple[int, int]:
    """Length of a piece and how many may be under way, with `granted` credits and pieces of at most `largest` bytes."""
    usable = max(1, granted - _SPARE)
    piece = min(largest, usable * CREDIT)
    return piece, max(1, min(WIDTH, usable // -(-piece // CREDIT)))
