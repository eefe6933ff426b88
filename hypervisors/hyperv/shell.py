"""One shell on a Hyper-V host: scripts, one after the other, over PowerShell remoting. Blocking; for one thread at a time.

The protocol is pypsrp's ([MS-PSRP] over [MS-WSMV]); here is what may go wrong with it. Codes of WSMan faults: winerror.h.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any
from xml.etree.ElementTree import ParseError

import requests
from pypsrp.complex_objects import PSInvocationState
from pypsrp.exceptions import AuthenticationError, WinRMError, WinRMTransportError, WSManFaultError
from pypsrp.powershell import PowerShell, RunspacePool
from pypsrp.wsman import SelectorSet, WSMan
from spnego.exceptions import SpnegoError

from hypervisors.hyperv.endpoint import Auth, Endpoint
from hypervisors.hyperv.errors import HypervBusy, HypervFailure, failure
from hypervisors.hyperv.line import Line, LineAdapter
from stores.errors import AccessDenied, StorageError, TlsFailed, Unavailable
from stores.secret import Secret

_ACCESS_DENIED = 5
_ENVELOPE_TOO_LARGE = 0x80338048
_QUOTAS = {0x803381A5, 0x803381A6, 0x803381A7, 0x803381A8, 0x803381AB}
_IDLE_S = 600
"""A shell that nobody came back to is the host's to remove after this long."""
_TROUBLE = (requests.RequestException, WinRMError, SpnegoError, ParseError, OSError)
"""What pypsrp raises when something is wrong between us and the host."""


class Lost(Exception):
    """The shell is of no use any more; what was run in it may have run, or not. In another one the same may work. `error` is
    what to raise when there is no time for that."""

    def __init__(self, error: StorageError) -> None:
        super().__init__(error.message)
        self.error = error


class Shell:
    """Made without a connection. After any exception, it is to be closed and not used again."""

    def __init__(
        self, endpoint: Endpoint, *, connect_s: int = 10, answer_s: int = 30, poll_s: int = 2, goodbye_s: int = 5
    ) -> None:
        """Seconds. `answer_s`: for the answer to one message; `poll_s`: after which the host says that there is no output yet;
        `goodbye_s`: for each message of removing a shell that was lost."""
        self._endpoint = endpoint
        self._connect_s = connect_s
        self._poll_s = poll_s
        self._goodbye_s = goodbye_s
        self._line = Line()
        self._wsman = self._connection(self._line, connect_s, answer_s)
        self._pool = RunspacePool(
            self._wsman, configuration_name=endpoint.configuration, no_profile=True, idle_timeout=_IDLE_S
        )
        self._host_has_it = False
        self._known = False
        self._broken = False

    def _connection(self, line: Line, connect_s: int, answer_s: int) -> WSMan:
        endpoint = self._endpoint
        told: dict[str, Any] = {}
        if endpoint.auth is Auth.CERTIFICATE:
            told = {"certificate_pem": str(endpoint.certificate), "certificate_key_pem": str(endpoint.key)}
        wsman = WSMan(
            endpoint.address,
            port=endpoint.port,
            ssl=True,
            auth=endpoint.auth.value,
            username=endpoint.user,
            password=endpoint.password.reveal() if isinstance(endpoint.password, Secret) else None,
            connection_timeout=connect_s,
            read_timeout=answer_s,
            operation_timeout=max(answer_s - 5, 1),
            no_proxy=True,
            **told,
        )
        # pypsrp makes its session with the first message. Ours has to be there before, for the sake of the line.
        session = wsman.transport._build_session()
        session.trust_env = False
        session.mount("https://", LineAdapter(line, endpoint.fingerprint))
        # A pinned certificate needs no authority and no name: the adapter compares its fingerprint.
        session.verify = _authorities(endpoint) if endpoint.fingerprint is None else False
        wsman.transport.session = session
        return wsman

    def run(self, text: str, argument: str) -> str:
        """What the script of that text writes, given `argument`. Connects first if need be.

        `Lost`; errors of `failure` where PowerShell itself ends the script; `TlsFailed`; `AccessDenied` of a host that has not
        taken these credentials before. One that has may only have ended the session, or have others by now: `Lost`."""
        try:
            if not self._host_has_it:
                self._host_has_it = True
                self._pool.open()
                self._known = True
            return self._ran(text, argument)
        except (AuthenticationError, SpnegoError) as error:
            self._host_has_it = False  # to remove it would be another attempt with the same credentials
            raise Lost(self._denied()) if self._known else self._denied() from error
        except _TROUBLE as error:
            self._broken = True
            raise _translated(error, self._endpoint) from error

    def _ran(self, text: str, argument: str) -> str:
        script = PowerShell(self._pool)
        script.add_script(text, use_local_scope=True).add_parameter("Json", argument)
        script.begin_invoke(remote_stream_options=0)
        while script.state == PSInvocationState.RUNNING:
            script.poll_invoke(timeout=self._poll_s)
        script.close()
        if script.state != PSInvocationState.COMPLETED:
            raise _ended(script, self._endpoint)
        if len(script.output) != 1:
            raise HypervFailure(
                f"host {self._endpoint}: a script wrote {len(script.output)} things instead of one answer",
                host=str(self._endpoint),
            )
        return str(script.output[0])

    def cut(self) -> None:
        """From another thread: whatever is under way ends with `Lost`, and nothing comes after it but `close`."""
        self._broken = True
        self._line.cut()

    def abandon(self) -> None:
        """`close` will leave it to the host, which removes it after ten minutes."""
        self._host_has_it = False

    def close(self) -> None:
        """Gives it back to the host, over another connection if this one was lost. Failing that, the host removes it after
        ten minutes. Raises nothing."""
        with suppress(*_TROUBLE):
            if self._host_has_it:
                self._host_has_it = False
                self._remove()
        self._wsman.close()

    def _remove(self) -> None:
        wsman = self._wsman
        if self._broken:
            wsman = self._connection(Line(), self._goodbye_s, self._goodbye_s)
        selectors = SelectorSet()
        selectors.add_option("ShellId", self._pool.shell.id or self._pool.id)
        try:
            wsman.delete(self._pool.shell.resource_uri, selector_set=selectors)
        finally:
            wsman.close()

    def _denied(self) -> AccessDenied:
        return AccessDenied(
            f"host {self._endpoint} refuses us by {self._endpoint.auth.value}; correct the credentials",
            host=str(self._endpoint),
        )


def _authorities(endpoint: Endpoint) -> str | bool:
    """Where those are that may vouch for the host: `ca_file`, or the system's. True: requests' own."""
    system = ssl.get_default_verify_paths()
    return str(endpoint.ca_file) if endpoint.ca_file is not None else system.cafile or system.capath or True


def _ended(script: PowerShell, endpoint: Endpoint) -> Exception:
    """For a script that did not come to its end: it was stopped, or is not one that this host takes."""
    if script.state == PSInvocationState.STOPPED or not script.streams.error:
        return Lost(Unavailable(f"host {endpoint} stopped a script", host=str(endpoint)))
    record = script.streams.error[-1]
    number = getattr(getattr(record, "exception", None), "adapted_properties", {}).get("HResult", 0)
    return failure({"id": record.fq_error, "hresult": number, "message": str(record)}, doing=f"host {endpoint}")


def _translated(error: Exception, endpoint: Endpoint) -> Exception:
    """What `error` of pypsrp, or of what is below it, is for us."""
    if isinstance(error, WSManFaultError) and error.code is None and error.__context__ is not None:
        error = error.__context__ if isinstance(error.__context__, WinRMTransportError) else error  # a page in HTML
    if isinstance(error, WSManFaultError):
        return _of_fault(error, endpoint)
    if isinstance(error, requests.exceptions.SSLError) and not _just_ended(error):
        return TlsFailed(f"no trusted TLS session with host {endpoint}: {error}", host=str(endpoint))
    if isinstance(error, WinRMTransportError) and error.code < 500 and error.code != 429:
        return HypervFailure(f"host {endpoint} answers with HTTP {error.code}: no WinRM is there", host=str(endpoint))
    said = f"HTTP {error.code}" if isinstance(error, WinRMTransportError) else type(error).__name__
    return Lost(Unavailable(f"host {endpoint} cannot be reached, or the connection broke: {said}", host=str(endpoint)))


def _of_fault(fault: WSManFaultError, endpoint: Endpoint) -> Exception:
    code = fault.code if isinstance(fault.code, int) else 0
    if code == _ACCESS_DENIED:
        return AccessDenied(
            f"host {endpoint} knows us, and does not let us use {endpoint.configuration}; give the account that right",
            host=str(endpoint),
        )
    if code == _ENVELOPE_TOO_LARGE:
        return HypervFailure(f"host {endpoint} does not take messages of this size", hresult=code, host=str(endpoint))
    if code in _QUOTAS:
        text = f"host {endpoint} has no room for another shell or call of ours (WSMan fault {code:#010x})"
        return Lost(HypervBusy(text, hresult=code, host=str(endpoint)))
    return Lost(Unavailable(f"host {endpoint}: WSMan fault {fault.code}", host=str(endpoint), fault=str(fault.code)))


def _just_ended(error: BaseException | None) -> bool:
    """Whether TLS failed because the connection ended, which says nothing about trust."""
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        pending += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
    return False
